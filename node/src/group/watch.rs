//! A replica, as watches see it.

use crate::failure::Failure;
use crate::group::Group;
use crate::watch::{KeyState, Outbox, Source, WatchRequest};
use std::sync::Arc;
use std::time::Duration;

impl Group {
    /// Takes a watch in, for this stream. Any replica does; it tells what it has applied.
    ///
    /// # Errors
    /// When the replica is gone, the id is taken, or the stream has too many watches.
    pub fn watch(&self, request: WatchRequest, outbox: &Arc<Outbox>) -> Result<(), Failure> {
        let hub = self.0.replica.hub();
        if outbox.watch(request, hub, Arc::new(self.clone()))? {
            tokio::spawn(hub.clone().run());
        }
        Ok(())
    }

    /// Bytes of events kept for those who watch.
    pub fn history_bytes(&self) -> u64 {
        self.0.replica.hub().history_bytes()
    }
}

impl Source for Group {
    fn state(&self, key: &[u8]) -> KeyState {
        KeyState::of(&self.0.replica.state().machine.tree, key)
    }

    fn lag(&self) -> Duration {
        self.0.contact.silence().unwrap_or(Duration::MAX)
    }
}
