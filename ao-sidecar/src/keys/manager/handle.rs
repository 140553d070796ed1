//! How others talk to the task.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keymgr::rollover::message::Message;
use keymgr::rollover::{Parameters, Rollover, Status};
use tokio::sync::{mpsc, oneshot};

use crate::keys::job::Outcome;

/// What an operator asks of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::keys) enum Command {
    Start { compromised: bool },
    Abort,
    Force,
}

/// Where an answer is awaited, or why there is none.
pub(in crate::keys) type Reply<T, E = String> = oneshot::Sender<Result<T, E>>;

/// Something that has happened.
pub(super) enum Input {
    /// The far end called.
    Request {
        peer: Named,
        message: Message,
        reply: Reply<Message, NoAnswer>,
    },
    /// A call has ended.
    Response {
        peer: Named,
        result: Result<Message, String>,
    },
    /// The backend has done a job.
    Done(Outcome),
    Operator {
        peer: Arc<str>,
        command: Command,
        reply: Reply<()>,
    },
    Status {
        peer: Option<Arc<str>>,
        reply: oneshot::Sender<Vec<(Arc<str>, View)>>,
    },
    /// Somebody is to have the backend alone, until a plan comes or none will.
    Hold {
        ready: Reply<()>,
        plan: oneshot::Receiver<(Plan, Reply<()>)>,
    },
    /// The hold with this number is over.
    Release {
        number: u64,
        plan: Option<(Plan, Reply<()>)>,
    },
}

/// Names a peer together with its [`incarnation`](Planned::incarnation).
#[derive(Clone, Debug)]
pub(in crate::keys) struct Named {
    pub(in crate::keys) name: Arc<str>,
    pub(in crate::keys) incarnation: u64,
}

/// All automatic peers of a configuration.
pub(in crate::keys) struct Plan {
    pub(in crate::keys) peers: Vec<Planned>,
    /// Peers whose records are to be destroyed, beside those that the plan leaves out.
    pub(in crate::keys) gone: Vec<Arc<str>>,
    /// How often all sessions are looked at, to notice that a far end has moved on by itself.
    pub(in crate::keys) look_every: Duration,
}

/// A peer of a plan.
pub(in crate::keys) struct Planned {
    pub(in crate::keys) name: Arc<str>,
    /// Tells state machines of peers with the same name apart: what was said to a former one, or
    /// by a far end that only a former one trusted, is nothing to this one.
    pub(in crate::keys) incarnation: u64,
    pub(in crate::keys) course: Course,
}

/// How it goes on with a peer.
pub(in crate::keys) enum Course {
    /// As before.
    Same,
    /// With other settings, or another way to the far end.
    Reconfigured(Parameters),
    /// With this state machine, whatever was there before.
    Begun(Box<Rollover>),
}

/// What is known of a peer.
pub(in crate::keys) struct View {
    pub(in crate::keys) status: Status,
    /// Since when and why calls fail.
    pub(in crate::keys) failing: Option<(SystemTime, String)>,
    /// When the last change of keys was completed, how long it took, and why it was begun.
    pub(in crate::keys) last: Option<(SystemTime, Duration, &'static str)>,
}

/// Talks to the task; the task ends when the last of them is gone.
#[derive(Clone)]
pub(in crate::keys) struct Handle(pub(super) mpsc::Sender<Input>);

/// What is said when the task has ended.
const STOPPING: &str = "the daemon is stopping";

/// Why a far end's message got no answer.
pub(in crate::keys) enum NoAnswer {
    /// The message is at fault.
    Rejected(String),
    /// We are. What it is, is no business of the far end's.
    NotNow,
}

impl Handle {
    /// The far end's message, answered.
    pub(in crate::keys) async fn exchange(
        &self,
        peer: Named,
        message: Message,
    ) -> Result<Message, NoAnswer> {
        let answer = self.ask(|reply| Input::Request {
            peer,
            message,
            reply,
        });
        answer.await.unwrap_or(Err(NoAnswer::NotNow))
    }

    /// Carries out an operator's command, or says why not.
    pub(in crate::keys) async fn command(
        &self,
        peer: Arc<str>,
        command: Command,
    ) -> Result<(), String> {
        self.ask(|reply| Input::Operator {
            peer,
            command,
            reply,
        })
        .await?
    }

    /// How things are with one peer, or all.
    pub(in crate::keys) async fn status(
        &self,
        peer: Option<Arc<str>>,
    ) -> Result<Vec<(Arc<str>, View)>, String> {
        self.ask(|reply| Input::Status { peer, reply }).await
    }

    /// Has the task leave the backend alone, from when this returns until a plan is sent, or what
    /// it would be sent to is dropped. Refused while records cannot be put on disk.
    pub(in crate::keys) async fn hold(&self) -> Result<oneshot::Sender<(Plan, Reply<()>)>, String> {
        let (sender, plan) = oneshot::channel();
        self.ask(|ready| Input::Hold { ready, plan }).await??;
        Ok(sender)
    }

    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, String> {
        let (reply, answer) = oneshot::channel();
        let sent = self.0.send(input(reply)).await;
        sent.map_err(|_| STOPPING.to_owned())?;
        answer.await.map_err(|_| STOPPING.to_owned())
    }
}
