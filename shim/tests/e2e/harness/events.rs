//! containerd's events, as `ctr events` prints them.
use super::PATIENCE;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// One event: its topic, such as `/tasks/exit`, and its fields.
#[derive(Clone, Debug)]
pub struct Event {
    pub topic: String,
    pub fields: Value,
}

impl Event {
    /// The container the event is about.
    fn container(&self) -> &str {
        self.fields["container_id"].as_str().or_else(|| self.fields["id"].as_str()).unwrap_or_default()
    }
}

type Log = Arc<(Mutex<Vec<Event>>, Condvar)>;

/// Everything containerd has published since the log was opened.
pub struct Events {
    log: Log,
    ctr: Child,
}

impl Events {
    /// Opens the log with `ctr events`. `probe` publishes an event; the log is open once one of them has arrived.
    pub fn open(mut ctr: Command, mut probe: impl FnMut() -> Result<()>) -> Result<Events> {
        let mut ctr =
            ctr.arg("events").stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting ctr events")?;
        let lines = BufReader::new(ctr.stdout.take().context("stdout is a pipe")?).lines();
        let log = Log::default();
        let filled = log.clone();
        std::thread::spawn(move || {
            for event in lines.map_while(Result::ok).filter_map(|line| parse(&line)) {
                filled.0.lock().expect("no reader panics").push(event);
                filled.1.notify_all();
            }
        });
        let events = Events { log, ctr };
        for _ in 0..PATIENCE.as_secs() {
            probe()?;
            if events.wait(Duration::from_secs(1), |log| (!log.is_empty()).then_some(())).is_some() {
                return Ok(events);
            }
        }
        bail!("ctr events shows no event")
    }

    /// Waits until the container's event of this topic has been published, and returns it. Of exits it is init's.
    pub fn wait_for(&self, container: &str, topic: &str) -> Result<Event> {
        let own = |event: &&Event| {
            let id = event.fields["id"].as_str().unwrap_or_default();
            event.topic == topic && event.container() == container && (id.is_empty() || id == container)
        };
        let found = |log: &[Event]| log.iter().find(own).cloned();
        self.wait(PATIENCE, found).with_context(|| format!("no event {topic} of {container}: {:?}", self.of(container)))
    }

    /// Waits until the container's events, oldest first, are as `done` wants them.
    pub fn wait_until(&self, container: &str, done: impl Fn(&[Event]) -> bool) -> Result<()> {
        let found = |log: &[Event]| {
            let own: Vec<Event> = log.iter().filter(|event| event.container() == container).cloned().collect();
            done(&own).then_some(())
        };
        self.wait(PATIENCE, found).with_context(|| format!("not what was awaited: {:?}", self.of(container)))
    }

    /// The container's events so far, oldest first.
    pub fn of(&self, container: &str) -> Vec<Event> {
        let log = self.log.0.lock().expect("no reader panics");
        log.iter().filter(|event| event.container() == container).cloned().collect()
    }

    fn wait<T>(&self, patience: Duration, mut found: impl FnMut(&[Event]) -> Option<T>) -> Option<T> {
        let (log, changed) = &*self.log;
        let mut answer = None;
        let guard = log.lock().expect("no reader panics");
        let _unlocked = changed
            .wait_timeout_while(guard, patience, |log| {
                answer = found(log);
                answer.is_none()
            })
            .expect("no reader panics");
        answer
    }

    /// Ends `ctr events`.
    pub fn close(&mut self) -> Result<()> {
        self.ctr.kill().and_then(|()| self.ctr.wait()).map(drop).context("ending ctr events")
    }
}

/// A line is "date time zone zone namespace topic json".
fn parse(line: &str) -> Option<Event> {
    let json = line.find('{')?;
    let topic = line[..json].split_whitespace().last()?.to_owned();
    Some(Event { topic, fields: serde_json::from_str(&line[json..]).ok()? })
}
