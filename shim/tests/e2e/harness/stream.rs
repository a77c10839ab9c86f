//! What a program writes, kept by a thread, so that a test can wait for a part of it.
use super::PATIENCE;
use anyhow::{Result, ensure};
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

#[derive(Default)]
struct Captured {
    bytes: Vec<u8>,
    ended: bool,
}

/// A stream that is read to its end.
#[derive(Clone, Default)]
pub struct Stream(Arc<(Mutex<Captured>, Condvar)>);

impl Stream {
    pub fn read_from(mut source: impl Read + Send + 'static) -> Stream {
        let stream = Stream::default();
        let filled = stream.clone();
        thread::spawn(move || {
            let mut buffer = [0; 16384];
            loop {
                // An error of a pipe's read end means the same as its end: nothing more will come.
                let n = source.read(&mut buffer).unwrap_or(0);
                let (captured, changed) = &*filled.0;
                let mut captured = captured.lock().expect("no reader panics");
                captured.bytes.extend_from_slice(&buffer[..n]);
                captured.ended = n == 0;
                changed.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        stream
    }

    /// Waits until `done` says so, the stream ends, or patience does; returns whether `done` did.
    fn wait(&self, patience: Duration, done: impl Fn(&Captured) -> bool) -> bool {
        let (captured, changed) = &*self.0;
        let guard = captured.lock().expect("no reader panics");
        let (guard, _) = changed
            .wait_timeout_while(guard, patience, |captured| !done(captured) && !captured.ended)
            .expect("no reader panics");
        done(&guard)
    }

    /// What has come so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().expect("no reader panics").bytes.clone()
    }

    /// The same as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Waits until `text` has come.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        let found = self.wait(PATIENCE, |captured| contains(&captured.bytes, text.as_bytes()));
        ensure!(found, "no {text:?} in {:?}", end_of(&self.text()));
        Ok(())
    }

    /// Whether `text` comes, or has come, within this time.
    #[allow(dead_code, reason = "not every program has to be asked twice")]
    pub fn shows(&self, text: &str, patience: Duration) -> bool {
        self.wait(patience, |captured| contains(&captured.bytes, text.as_bytes()))
    }

    /// Waits for the end and returns all of it.
    pub fn to_end(&self) -> Result<Vec<u8>> {
        ensure!(self.wait(PATIENCE, |captured| captured.ended), "no end of {:?}", end_of(&self.text()));
        Ok(self.bytes())
    }
}

/// The last part of a text, as much as a reader wants to see.
pub fn end_of(text: &str) -> &str {
    let start = text.len().saturating_sub(4000);
    let start = (start..text.len()).find(|index| text.is_char_boundary(*index)).unwrap_or(0);
    &text[start..]
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
