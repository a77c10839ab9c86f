//! Log lines to containerd: the bundle's `log` fifo, in the text form of containerd's own logger (logrus).

use log::kv::{Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The fifo in the bundle; containerd made it and reads it.
const FIFO: &str = "log";

/// A write to a pipe of up to this many bytes is not mixed with others (PIPE_BUF, pipe(7)).
const MAX_LINE: usize = 4096;

/// Opens the log fifo in `bundle`, and sends the process's log records and panics there.
///
/// It is opened for reading, too: then the open neither blocks nor fails when containerd is not reading yet, and
/// lines written while containerd restarts wait in the pipe. Writes never block; what does not fit is counted.
/// A missing fifo leaves the process without a log, as nobody would read one.
pub fn init(bundle: &Path, id: &str, namespace: &str, level: LevelFilter) {
    let fifo = OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(bundle.join(FIFO));
    let Ok(fifo) = fifo else { return };
    let logger =
        FifoLogger { fifo, level, id: id.to_owned(), namespace: namespace.to_owned(), lost: AtomicU64::new(0) };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
        std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    }
}

struct FifoLogger {
    fifo: File,
    level: LevelFilter,
    /// The container that the shim was started for: named where a record names no other.
    id: String,
    namespace: String,
    /// Lines that did not fit into the pipe since the last one that did.
    lost: AtomicU64,
}

impl Log for FifoLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let line = format_line(record, OffsetDateTime::now_utc(), &self.id, &self.namespace, lost);
        // No error can be logged here: a full pipe or a missing reader is counted for the next line.
        if !matches!((&self.fifo).write(line.as_bytes()), Ok(written) if written == line.len()) {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// The fields that a record carries, `id` apart.
#[derive(Default)]
struct Fields {
    id: Option<String>,
    rest: String,
}

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        if key.as_str() == "id" {
            self.id = Some(value.to_string());
        } else {
            field(&mut self.rest, key.as_str(), &value.to_string());
        }
        Ok(())
    }
}

fn format_line(record: &Record<'_>, now: OffsetDateTime, id: &str, namespace: &str, lost: u64) -> String {
    let mut fields = Fields::default();
    // Only our own visitor could fail, and it doesn't.
    let _ = record.key_values().visit(&mut fields);
    let level = match record.level() {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let mut tail = String::new();
    field(&mut tail, "id", fields.id.as_deref().unwrap_or(id));
    field(&mut tail, "namespace", namespace);
    field(&mut tail, "runtime", crate::RUNTIME);
    tail.push_str(&fields.rest);
    if lost > 0 {
        field(&mut tail, "lost", &lost.to_string());
    }
    tail.push('\n');

    let mut line = String::with_capacity(256);
    let time = now.format(&Rfc3339).unwrap_or_default();
    let _ = write!(line, "time={} level={level}", quoted(&time));
    field(&mut line, "msg", &record.args().to_string());
    if line.len() + tail.len() > MAX_LINE {
        const CUT: &str = "…\"";
        let mut end = MAX_LINE.saturating_sub(tail.len() + CUT.len()).min(line.len());
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line.push_str(CUT);
    }
    line.push_str(&tail);
    line
}

fn field(line: &mut String, key: &str, value: &str) {
    line.push(' ');
    line.push_str(key);
    line.push('=');
    line.push_str(&quoted(value));
}

/// Quotes what logrus quotes: everything but plain words.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if !value.is_empty() && value.chars().all(plain) { value.to_owned() } else { format!("{value:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(args: std::fmt::Arguments<'_>, kvs: &[(&str, &str)], lost: u64) -> String {
        let record = Record::builder().args(args).level(Level::Warn).key_values(&kvs).build();
        format_line(&record, OffsetDateTime::UNIX_EPOCH, "box", "k8s.io", lost)
    }

    #[test]
    fn a_line_is_in_the_form_of_logrus() {
        assert_eq!(
            line(format_args!("two words"), &[], 0),
            "time=\"1970-01-01T00:00:00Z\" level=warning msg=\"two words\" id=box namespace=k8s.io \
             runtime=io.containerd.hybrid.v1\n"
        );
        assert_eq!(
            line(format_args!("word"), &[("id", "other"), ("pid", "7")], 3),
            "time=\"1970-01-01T00:00:00Z\" level=warning msg=word id=other namespace=k8s.io \
             runtime=io.containerd.hybrid.v1 pid=7 lost=3\n"
        );
    }

    #[test]
    fn a_line_stays_one_line_and_fits_into_one_write() {
        let text = line(format_args!("a\nb"), &[], 0);
        assert_eq!(text.matches('\n').count(), 1);
        let long = "é".repeat(MAX_LINE);
        let text = line(format_args!("{long}"), &[], 0);
        assert!(text.len() <= MAX_LINE && text.ends_with("io.containerd.hybrid.v1\n"), "{}", text.len());
    }

    #[test]
    fn lines_that_do_not_fit_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FIFO);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let fifo = OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(&path).unwrap();
        let logger = FifoLogger {
            fifo,
            level: LevelFilter::Info,
            id: "box".into(),
            namespace: "n".into(),
            lost: AtomicU64::new(0),
        };
        let long = "x".repeat(MAX_LINE);
        for _ in 0..100 {
            logger.log(&Record::builder().args(format_args!("{long}")).level(Level::Info).build());
        }
        assert!(logger.lost.load(Ordering::Relaxed) > 0);
        logger.log(&Record::builder().args(format_args!("quiet")).level(Level::Debug).build());
    }
}
