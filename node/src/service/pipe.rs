//! The fast path: a stream of frames in, a stream of replies out, in any order. One task reads a
//! stream; replies go from wherever the answer is known straight into the stream's queue. The queue
//! needs no bound of its own: every reply in it holds its frame's place among the frames in flight,
//! and its bytes in the node's budget, until the connection takes it.

use crate::clock;
use crate::failure::Failure;
use crate::group::reply::Answer;
use crate::ids::GroupId;
use crate::service::admission::{self, Access, Hold};
use crate::service::metrics::Gauged;
use crate::service::{Service, Submission};
use dtkv_client::v1::{Consistency, Frame, FrameReply};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::Stream;
use tonic::{Status, Streaming};

/// A reply on its way to the connection, and what it holds until then.
struct Outgoing {
    reply: FrameReply,
    _hold: Option<Hold>,
    _place: OwnedSemaphorePermit,
}

/// The replies of one stream.
pub struct Replies {
    queue: UnboundedReceiver<Outgoing>,
    _open: Gauged,
}

impl Stream for Replies {
    type Item = Result<FrameReply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.queue.poll_recv(context).map(|next| next.map(|outgoing| Ok(outgoing.reply)))
    }
}

impl Service {
    /// Starts to read a stream. It ends when the client has sent its last frame, when the client is
    /// gone, and when the node stops; frames in flight are answered first.
    pub(super) fn open_pipe(&self, frames: Streaming<Frame>) -> Replies {
        let (send, queue) = unbounded_channel();
        tokio::spawn(self.clone().read_frames(frames, send));
        Replies { queue, _open: self.0.metrics.stream() }
    }

    async fn read_frames(self, mut frames: Streaming<Frame>, replies: UnboundedSender<Outgoing>) {
        let places = Arc::new(Semaphore::new(self.0.options.frames_per_stream_max as usize));
        loop {
            // Not reading is what slows a client down that has too many frames in flight.
            let next = async {
                let place = places.clone().acquire_owned().await.ok()?;
                let frame = frames.message().await.ok()??;
                Some((place, frame))
            };
            let next = tokio::select! {
                biased;
                next = next => next,
                () = replies.closed() => None,
                () = self.0.stop.cancelled() => None,
            };
            let Some((place, frame)) = next else { return };
            self.take_frame(frame, place, replies.clone());
        }
    }

    fn take_frame(&self, frame: Frame, place: OwnedSemaphorePermit, replies: UnboundedSender<Outgoing>) {
        let (id, count, access) = (frame.id, frame.count, Access::of(frame.read));
        let (service, started) = (self.clone(), clock::now());
        let answer = move |answer: Result<Answer, Failure>, hold: Option<Hold>| {
            service.0.metrics.frame(access, count, started, answer.as_ref().err());
            let reply = match answer {
                Ok(answer) => FrameReply {
                    id,
                    index: answer.index,
                    results: answer.results,
                    failure: None,
                    lag_ms: answer.lag_ms,
                },
                Err(failure) => {
                    FrameReply { id, failure: Some(service.failure(failure)), ..FrameReply::default() }
                }
            };
            // When the client is gone, the reply and everything that it holds goes with it.
            let _ = replies.send(Outgoing { reply, _hold: hold, _place: place });
        };
        match self.read_frame(frame) {
            Ok(submission) => self.submit(submission, answer),
            Err(failure) => answer(Err(failure), None),
        }
    }

    fn read_frame(&self, frame: Frame) -> Result<Submission, Failure> {
        admission::check_count(frame.count)?;
        let consistency = Consistency::try_from(frame.consistency);
        let consistency = consistency.map_err(|_| unknown_consistency(frame.consistency))?;
        let timeout = (frame.timeout_ms > 0).then(|| Duration::from_millis(frame.timeout_ms.into()));
        Ok(Submission {
            group: GroupId(frame.group_id),
            ops: frame.ops,
            count: frame.count,
            access: Access::of(frame.read),
            consistency,
            deadline: self.deadline(timeout),
        })
    }
}

/// A client newer than this node asks for something that it does not know.
pub(super) fn unknown_consistency(number: i32) -> Failure {
    Failure::invalid(format!(
        "there is no consistency {number}; this node knows 0 (linearizable) to 2 (stale)"
    ))
}
