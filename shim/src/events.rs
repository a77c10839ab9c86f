//! Events to containerd: one queue, one consumer, so that they arrive in the order in which they happened.
//!
//! ```text
//! publish() → queue → head: forward ─ ok ─────→ next
//!                       ↑      ├── refused ──→ again, at most 5 times with a growing pause; then dropped, with a log line
//!                       └──────┴── no answer → reconnect, until there is one: containerd is being restarted or upgraded
//! ```
//! An event that cannot be delivered holds back those behind it: containerd must not see an exit before its start.

use crate::status::timestamp;
use anyhow::{Context, Result, anyhow};
use containerd_shim_protos::events::task::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use std::time::{Duration, SystemTime};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use ttrpc::asynchronous::transport::Socket;

/// How many events may wait; as many as in containerd's Go shim.
const QUEUE: usize = 2048;
/// How often an event that containerd refuses is tried before it is dropped.
const TRIES: u32 = 5;
/// One try takes no longer than this.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after the first failed try; after the nth it is n times as long, up to [`LONGEST_PAUSE`] times.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: u32 = 5;

/// A message that containerd knows as an event. Names are constants: asking the protobuf library for them would
/// build its reflection tables in every shim.
pub trait Event: Message {
    const TOPIC: &'static str;
    /// The name without a host, as containerd's typeurl writes it.
    const TYPE_URL: &'static str;
}

macro_rules! events {
    ($($message:ident => $topic:ident),* $(,)?) => {
        $(impl Event for $message {
            const TOPIC: &'static str = topics::$topic;
            const TYPE_URL: &'static str = concat!("containerd.events.", stringify!($message));
        })*
    };
}

events! {
    TaskCreate => TASK_CREATE_EVENT_TOPIC,
    TaskStart => TASK_START_EVENT_TOPIC,
    TaskExit => TASK_EXIT_EVENT_TOPIC,
    TaskDelete => TASK_DELETE_EVENT_TOPIC,
    TaskExecAdded => TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted => TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskCheckpointed => TASK_CHECKPOINTED_EVENT_TOPIC,
    TaskPaused => TASK_PAUSED_EVENT_TOPIC,
    TaskResumed => TASK_RESUMED_EVENT_TOPIC,
    TaskOOM => TASK_OOM_EVENT_TOPIC,
}

enum Item {
    Event(Box<Envelope>),
    /// Answered when everything before it was delivered or dropped.
    Drained(oneshot::Sender<()>),
}

/// The sending end of the queue.
#[derive(Clone)]
pub struct EventPublisher {
    namespace: String,
    queue: mpsc::Sender<Item>,
}

impl EventPublisher {
    /// Starts the consumer in the current runtime. It connects to containerd's socket `address` with the first event.
    pub fn new(address: &str, namespace: &str) -> Self {
        Self::with_pause(address, namespace, PAUSE)
    }

    fn with_pause(address: &str, namespace: &str, pause: Duration) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let path = address.strip_prefix("unix://").unwrap_or(address).to_owned();
        tokio::spawn(deliver(receiver, Forwarder { path, client: None }, pause));
        Self { namespace: namespace.to_owned(), queue: sender }
    }

    /// Queues an event, stamped with the present time. Never waits.
    pub fn publish<E: Event>(&self, event: &E) {
        if let Err(error) = self.try_publish(event) {
            log::error!("dropped the event {}: {error:#}", E::TOPIC);
        }
    }

    fn try_publish<E: Event>(&self, event: &E) -> Result<()> {
        let mut any = Any::new();
        any.type_url = E::TYPE_URL.to_owned();
        any.value = event.write_to_bytes().context("encode it")?;
        let mut envelope = Envelope::new();
        envelope.timestamp = timestamp(SystemTime::now());
        envelope.namespace = self.namespace.clone();
        envelope.topic = E::TOPIC.to_owned();
        envelope.event = MessageField::some(any);
        self.queue.try_send(Item::Event(Box::new(envelope))).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => anyhow!("{QUEUE} events are waiting already"),
            mpsc::error::TrySendError::Closed(_) => anyhow!("the consumer has ended"),
        })
    }

    /// Waits until all events published before were delivered or dropped, but no longer than `limit`.
    /// Tells whether they were.
    pub async fn drain(&self, limit: Duration) -> bool {
        let (sender, drained) = oneshot::channel();
        let drain = async { self.queue.send(Item::Drained(sender)).await.is_ok() && drained.await.is_ok() };
        timeout(limit, drain).await.unwrap_or(false)
    }
}

async fn deliver(mut queue: mpsc::Receiver<Item>, mut forwarder: Forwarder, pause: Duration) {
    while let Some(item) = queue.recv().await {
        match item {
            Item::Event(envelope) => deliver_one(*envelope, &mut forwarder, pause).await,
            Item::Drained(sender) => {
                // Nobody waiting any more is no error: the limit has passed.
                let _ = sender.send(());
            }
        }
    }
}

async fn deliver_one(envelope: Envelope, forwarder: &mut Forwarder, pause: Duration) {
    let topic = envelope.topic.clone();
    let mut request = ForwardRequest::new();
    request.envelope = MessageField::some(envelope);
    let mut refusals = 0;
    for attempt in 1.. {
        match forwarder.forward(&request).await {
            Ok(()) => return,
            Err(Failure::Refused(error)) => {
                refusals += 1;
                if refusals == TRIES {
                    return log::error!("dropped the event {topic}, which containerd refused {TRIES} times: {error}");
                }
                log::warn!("forward the event {topic}, attempt {refusals} of {TRIES}: {error}");
            }
            Err(Failure::NoAnswer(error)) if attempt == 1 => log::warn!("forward the event {topic}: {error:#}"),
            Err(Failure::NoAnswer(error)) => log::debug!("forward the event {topic}, attempt {attempt}: {error:#}"),
        }
        sleep(pause * attempt.min(LONGEST_PAUSE)).await;
    }
}

/// Why an event was not delivered.
enum Failure {
    /// containerd has it, and does not want it.
    Refused(ttrpc::Error),
    NoAnswer(anyhow::Error),
}

/// A connection to containerd's event service, made when it is needed.
struct Forwarder {
    path: String,
    client: Option<EventsClient>,
}

impl Forwarder {
    /// One try. A connection that broke since the last event (containerd has restarted) is made anew at once.
    async fn forward(&mut self, request: &ForwardRequest) -> Result<(), Failure> {
        if let Some(client) = self.client.take() {
            match send(&client, request).await {
                Err(error) if !is_refusal(&error) => log::debug!("the connection to {} broke: {error}", self.path),
                answer => {
                    self.client = Some(client);
                    return answer.map_err(Failure::Refused);
                }
            }
        }
        let client = self.connect().await.map_err(Failure::NoAnswer)?;
        match send(&client, request).await {
            Err(error) if !is_refusal(&error) => {
                Err(Failure::NoAnswer(anyhow!(error).context(format!("send to {}", self.path))))
            }
            answer => {
                self.client = Some(client);
                answer.map_err(Failure::Refused)
            }
        }
    }

    async fn connect(&self) -> Result<EventsClient> {
        let stream = timeout(FORWARD_TIMEOUT, UnixStream::connect(&self.path))
            .await
            .with_context(|| format!("connect to {}: timeout", self.path))?
            .with_context(|| format!("connect to {}", self.path))?;
        Ok(EventsClient::new(Client::new(Socket::new(stream))))
    }
}

/// Whether containerd has answered at all.
fn is_refusal(error: &ttrpc::Error) -> bool {
    matches!(error, ttrpc::Error::RpcStatus(_))
}

async fn send(client: &EventsClient, request: &ForwardRequest) -> ttrpc::Result<()> {
    let limit = i64::try_from(FORWARD_TIMEOUT.as_nanos()).unwrap_or(i64::MAX);
    client.forward(ttrpc::context::with_timeout(limit), request).await.map(|_| ())
}

#[cfg(test)]
pub mod testing {
    //! A stand-in for containerd's event service.
    use super::*;
    use containerd_shim_protos::shim_async::{Events, create_events};
    use protobuf::well_known_types::empty::Empty;
    use std::path::Path;
    use std::sync::{Arc, Mutex};
    use ttrpc::asynchronous::{Server, TtrpcContext};

    /// Keeps what arrives, and refuses as often as told.
    #[derive(Default)]
    pub struct Sink {
        pub envelopes: Mutex<Vec<Envelope>>,
        pub refuse: Mutex<u32>,
    }

    impl Sink {
        pub fn topics(&self) -> Vec<String> {
            self.envelopes.lock().unwrap().iter().map(|e| e.topic.clone()).collect()
        }
    }

    #[async_trait::async_trait]
    impl Events for Sink {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let mut refuse = self.refuse.lock().unwrap();
            if *refuse > 0 {
                *refuse -= 1;
                let status = ttrpc::get_status(ttrpc::Code::UNAVAILABLE, "not now");
                return Err(ttrpc::Error::RpcStatus(status));
            }
            self.envelopes.lock().unwrap().push(request.envelope.unwrap());
            Ok(Empty::new())
        }
    }

    /// Serves `sink` on a socket.
    pub async fn serve(sink: &Arc<Sink>, path: &Path) -> Server {
        let service = create_events(sink.clone());
        let mut server = Server::new().bind(&format!("unix://{}", path.display())).unwrap().register_service(service);
        server.start().await.unwrap();
        server
    }

    /// A publisher with short pauses.
    pub fn publisher(path: &Path) -> EventPublisher {
        EventPublisher::with_pause(path.to_str().unwrap(), "n", Duration::from_millis(5))
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Sink, publisher, serve};
    use super::*;
    use std::sync::Arc;

    const LIMIT: Duration = Duration::from_secs(10);

    fn start(pid: u32) -> TaskStart {
        let mut event = TaskStart::new();
        event.container_id = "box".into();
        event.pid = pid;
        event
    }

    fn exit(pid: u32) -> TaskExit {
        let mut event = TaskExit::new();
        event.pid = pid;
        event
    }

    #[tokio::test]
    async fn envelopes_are_as_containerd_wants_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let sink = Arc::new(Sink::default());
        let _server = serve(&sink, &path).await;
        let events = publisher(&path);
        events.publish(&start(7));
        assert!(events.drain(LIMIT).await);
        let envelopes = sink.envelopes.lock().unwrap();
        assert_eq!(envelopes.len(), 1);
        assert_eq!(envelopes[0].topic, "/tasks/start");
        assert_eq!(envelopes[0].namespace, "n");
        assert_eq!(envelopes[0].event.type_url, "containerd.events.TaskStart");
        assert_eq!(TaskStart::parse_from_bytes(&envelopes[0].event.value).unwrap(), start(7));
        assert!(envelopes[0].timestamp.seconds > 0);
    }

    #[tokio::test]
    async fn a_refused_event_is_retried_at_the_head_of_the_queue() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let sink = Arc::new(Sink::default());
        *sink.refuse.lock().unwrap() = TRIES - 1;
        let _server = serve(&sink, &path).await;
        let events = publisher(&path);
        events.publish(&start(1));
        events.publish(&exit(1));
        assert!(events.drain(LIMIT).await);
        assert_eq!(sink.topics(), ["/tasks/start", "/tasks/exit"]);
    }

    #[tokio::test]
    async fn an_event_is_dropped_after_its_last_try_and_the_next_one_follows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let sink = Arc::new(Sink::default());
        *sink.refuse.lock().unwrap() = TRIES;
        let _server = serve(&sink, &path).await;
        let events = publisher(&path);
        events.publish(&start(1));
        events.publish(&exit(1));
        assert!(events.drain(LIMIT).await);
        assert_eq!(sink.topics(), ["/tasks/exit"]);
    }

    #[tokio::test]
    async fn a_restarted_containerd_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let sink = Arc::new(Sink::default());
        let mut server = serve(&sink, &path).await;
        let events = publisher(&path);
        events.publish(&start(1));
        assert!(events.drain(LIMIT).await);
        server.shutdown().await.unwrap();
        std::fs::remove_file(&path).unwrap();
        events.publish(&exit(1));
        let _server = serve(&sink, &path).await;
        assert!(events.drain(LIMIT).await);
        assert_eq!(sink.topics(), ["/tasks/start", "/tasks/exit"]);
    }

    #[tokio::test]
    async fn events_wait_for_a_containerd_that_is_away_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let sink = Arc::new(Sink::default());
        let events = publisher(&path);
        events.publish(&start(1));
        events.publish(&exit(1));
        // Longer than as many tries as a refused event gets.
        assert!(!events.drain(Duration::from_millis(200)).await);
        let _server = serve(&sink, &path).await;
        assert!(events.drain(LIMIT).await);
        assert_eq!(sink.topics(), ["/tasks/start", "/tasks/exit"]);
    }

    #[tokio::test]
    async fn draining_gives_up_at_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let events = EventPublisher::with_pause(dir.path().join("none").to_str().unwrap(), "n", PAUSE);
        events.publish(&start(1));
        assert!(!events.drain(Duration::from_millis(20)).await);
    }
}
