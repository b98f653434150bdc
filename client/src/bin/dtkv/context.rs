//! What a command works with: the connection and the settings.

use crate::args::{Guarded, Layout};
use crate::fault::Fault;
use crate::output::{self, Report};
use crate::settings::Settings;
use dtkv_client::admin::Admin;
use dtkv_client::{Client, Group};

/// What a command works with.
pub struct Context {
    pub client: Client,
    pub settings: Settings,
}

impl Context {
    /// Connects to the cluster.
    pub async fn connect(settings: Settings) -> Result<Context, Fault> {
        let client = connect(Client::builder(), &settings).await?;
        Ok(Context { client, settings })
    }

    /// The same connection under other settings.
    pub fn with(&self, settings: Settings) -> Context {
        Context { client: self.client.clone(), settings }
    }

    /// The group that keys belong to.
    pub fn group(&self) -> Group {
        self.client
            .group(self.settings.group)
            .with_consistency(self.settings.freshness.into())
            .with_timeout(self.settings.timeout)
    }

    /// The same group for writes under a guard, if there is one.
    pub fn guarded(&self, guarded: &Guarded) -> Group {
        match &guarded.guard {
            Some(guard) => self.group().guarded(&guard.0),
            None => self.group(),
        }
    }

    /// The client's identity, for a command that makes no sense with a random one.
    pub fn named_owner(&self) -> Result<[u8; 16], Fault> {
        let advice = "whose? name the owner with --owner ID or DTKV_OWNER";
        let owner = self.settings.owner.ok_or_else(|| Fault::usage(advice))?;
        Ok(owner)
    }

    /// The administration.
    pub fn admin(&self) -> Admin {
        self.client.admin()
    }

    /// Prints an answer.
    pub fn print(&self, report: &impl Report) -> Result<(), Fault> {
        Ok(output::print(report, self.settings.layout)?)
    }

    /// False when programs read the output.
    pub fn is_for_people(&self) -> bool {
        self.settings.layout == Layout::Table
    }
}

/// Connects with the options of the builder and what the settings say.
pub async fn connect(builder: dtkv_client::ClientBuilder, settings: &Settings) -> Result<Client, Fault> {
    let builder = builder
        .request_timeout(settings.timeout)
        .connect_timeout(settings.timeout)
        .consistency(settings.freshness.into());
    let builder = settings.owner.map_or(builder.clone(), |owner| builder.client_id(owner));
    builder.connect(settings.endpoints.clone()).await.map_err(|e| {
        let fault = Fault::from(e);
        let advice = "Is a node running there? Name nodes with --endpoints HOST:PORT or DTKV_ENDPOINTS.";
        Fault { message: format!("{}\n{advice}", fault.message), ..fault }
    })
}
