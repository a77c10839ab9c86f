//! Log drivers (`binary://`), and terminals whose output goes to one or to a file.
use crate::harness::direct::Server;
use crate::harness::leaks::Process;
use crate::harness::{Case, NAMESPACE, PATIENCE, Test, limit};
use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::Status;
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[
    Case::new("all_output_arrives", |test| {
        let log = Log::new(test)?;
        let task = test.created(test.spec(&["lines", "100000"])?, |request| {
            (request.stdout, request.stderr) = (log.uri("binary"), log.uri("binary"));
        })?;
        task.start().context("Start")?;
        ensure!(task.wait().context("Wait")?.exit_status == 0, "exit status");
        task.end()?;
        let text = log.text("")?;
        ensure!(text.lines().count() == 100_000 && text.ends_with("\n100000\n"), "{} lines", text.lines().count());
        log.remove()
    })
    .all(),
    Case::new("stdout_and_stderr_apart", |test| {
        let log = Log::new(test)?;
        let task = test.created(test.spec(&["say", "to stdout", "to stderr"])?, |request| {
            (request.stdout, request.stderr) = (log.uri("binary"), log.uri("binary"));
        })?;
        task.start().context("Start")?;
        task.wait().context("Wait")?;
        task.end()?;
        let (stdout, stderr) = (log.text("")?, log.text(".err")?);
        ensure!(stdout == "to stdout" && stderr == "to stderr", "{stdout:?} and {stderr:?}");
        ensure!(log.about()?.1 == format!("{NAMESPACE} {}", test.id), "{:?}", log.about()?);
        log.remove()
    })
    .all(),
    Case::new("by_ctr", |test| {
        let log = Log::new(test)?;
        test.run(&["say", "to stdout", "to stderr"]).flags(&["--log-uri", &log.uri("binary")]).detach()?;
        test.containerd.events.wait_for(&test.id, "/tasks/exit")?;
        test.delete(&test.id)?;
        let (stdout, stderr) = (log.text("")?, log.text(".err")?);
        ensure!(stdout == "to stdout" && stderr == "to stderr", "{stdout:?} and {stderr:?}");
        log.remove()
    })
    .all(),
    Case::new("of_an_exec", |test| {
        let log = Log::new(test)?;
        let task = test.task(&["pause"])?;
        let exec = task.exec("one", &["say", "to stdout", "to stderr"])?.streams(&log.uri("binary"));
        exec.spawn()?;
        exec.finish()?.exits(0)?;
        let (stdout, stderr) = (log.text("")?, log.text(".err")?);
        ensure!(stdout == "to stdout" && stderr == "to stderr", "{stdout:?} and {stderr:?}");
        // The exec's id, as containerd's own shim has it.
        ensure!(log.about()?.1 == format!("{NAMESPACE} one"), "{:?}", log.about()?);
        task.end()?;
        log.remove()
    })
    .all(),
    Case::new("of_a_terminal", |test| {
        let log = Log::new(test)?;
        let spec = test.spec(&["lines", "1000"])?.set("/process/terminal", json!(true))?;
        let task = test.created(spec, |request| {
            request.terminal = true;
            (request.stdout, request.stderr) = (log.uri("binary"), String::new());
        })?;
        task.start().context("Start")?;
        ensure!(task.wait().context("Wait")?.exit_status == 0, "exit status");
        task.end()?;
        log.ended()?;
        let text = log.text("")?;
        ensure!(text.lines().count() == 1000 && text.ends_with("\r\n1000\r\n"), "{} lines", text.lines().count());
        log.remove()
    })
    .all(),
    Case::new("ready_by_a_byte", |test| {
        let log = Log::new(test)?.ready("byte");
        for scheme in ["binary", "binary-v2"] {
            let spec = test.spec(&["say", "text", ""])?;
            let task =
                test.created(spec, |request| (request.stdout, request.stderr) = (log.uri(scheme), log.uri(scheme)))?;
            task.start().context("Start")?;
            task.wait().context("Wait")?;
            task.end()?;
        }
        ensure!(log.text("")? == "texttext", "{:?}", log.text("")?);
        log.remove()
    })
    .hybrid_only(), // binary-v2 came with containerd 2.2
    Case::new("missing", |test| {
        let log = Log::new(test)?;
        refused(test, "binary:///no/such/logger?file=x", &["/no/such/logger"])?;
        log.remove()
    })
    .all(),
    Case::new("ends_at_once", |test| {
        let log = Log::new(test)?.ready("exit");
        for scheme in ["binary", "binary-v2"] {
            refused(test, &log.uri(scheme), &["logger"])?;
        }
        log.remove()
    })
    .hybrid_only(), // runc's takes it for ready, and the container has a stdout without a reader
    Case::new("never_ready", |test| {
        let log = Log::new(test)?.ready("never");
        let before = Instant::now();
        refused(test, &log.uri("binary"), &["logger"])?;
        ensure!(before.elapsed() < limit(Duration::from_secs(40)), "it took {:?}", before.elapsed());
        log.ended()?;
        log.remove()
    })
    .hybrid_only(), // runc's waits for ever
    Case::new("killed", |test| {
        let log = Log::new(test)?;
        let task = test.created(test.spec(&["on-signal", "10", "33"])?, |request| {
            (request.stdout, request.stderr) = (log.uri("binary"), log.uri("binary"));
        })?;
        task.start().context("Start")?;
        log.wait_for("ready\n")?;
        Process::of(log.about()?.0).context("the logger has ended")?.kill()?;
        ensure!(task.state().context("State")?.status() == Status::RUNNING, "its logger's end ended the container");
        // It writes to stdout once more.
        task.kill(10).context("Kill")?;
        ensure!(task.wait().context("Wait")?.exit_status == 33, "its logger's end was its own");
        let before = Instant::now();
        task.end()?;
        ensure!(before.elapsed() < limit(Duration::from_secs(15)), "Delete took {:?}", before.elapsed());
        log.remove()
    }),
    Case::new("outlives_no_container", |test| {
        let log = Log::new(test)?;
        let task = test.created(test.spec(&["pause"])?, |request| {
            (request.stdout, request.stderr) = (log.uri("binary"), log.uri("binary"));
        })?;
        task.start().context("Start")?;
        let logger = log.about()?.0;
        task.end()?;
        ensure!(Process::of(logger).is_none(), "the logger still runs");
        log.remove()
    })
    .all(),
    Case::new("file_of_a_terminal", |test| {
        let log = Log::new(test)?;
        let spec = test.spec(&["lines", "1000"])?.set("/process/terminal", json!(true))?;
        let task = test.created(spec, |request| {
            request.terminal = true;
            (request.stdout, request.stderr) = (format!("file://{}", log.path.display()), String::new());
        })?;
        task.start().context("Start")?;
        ensure!(task.wait().context("Wait")?.exit_status == 0, "exit status");
        task.end()?;
        let text = log.text("")?;
        ensure!(text.lines().count() == 1000 && text.ends_with("\r\n1000\r\n"), "{} lines", text.lines().count());
        log.remove()
    })
    .all()
    .hybrid_only(), // runc's takes the URI for the path of a fifo
];

/// What a logger is to write, in a folder of its own.
struct Log {
    logger: PathBuf,
    path: PathBuf,
    ready: &'static str,
}

impl Log {
    fn new(test: &Test) -> Result<Log> {
        let folder = test.containerd.fresh_path("log");
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        Ok(Log { logger: test.containerd.logger()?.to_owned(), path: folder.join("log"), ready: "close" })
    }

    /// How it says that it is ready (test-images/programs/logger.c).
    fn ready(mut self, how: &'static str) -> Log {
        self.ready = how;
        self
    }

    fn uri(&self, scheme: &str) -> String {
        format!("{scheme}://{}?file={}&ready={}", self.logger.display(), self.path.display(), self.ready)
    }

    fn file(&self, suffix: &str) -> PathBuf {
        PathBuf::from(format!("{}{suffix}", self.path.display()))
    }

    fn text(&self, suffix: &str) -> Result<String> {
        let file = self.file(suffix);
        fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
    }

    /// The logger's pid, and what its environment says: namespace and id.
    fn about(&self) -> Result<(u32, String)> {
        let text = self.text(".about")?;
        let (pid, rest) = text.trim().split_once(' ').context("a line about the logger")?;
        Ok((pid.parse().context("its pid")?, rest.to_owned()))
    }

    /// Waits until the logger has written `text`: it tells nobody.
    fn wait_for(&self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.text("")?.contains(text) {
            ensure!(Instant::now() < deadline, "no {text:?} in {:?}", self.text("")?);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Waits for the logger's end.
    fn ended(&self) -> Result<()> {
        Process::of(self.about()?.0).map_or(Ok(()), |logger| logger.wait_for_end().context("the logger still runs"))
    }

    fn remove(self) -> Result<()> {
        fs::remove_dir_all(self.path.parent().context("a log lies in a folder")?).context("removing the log")
    }
}

/// Create is refused with all of `words`, and leaves neither a task nor a logger.
fn refused(test: &Test, uri: &str, words: &[&str]) -> Result<()> {
    let direct = test.direct()?.config(&test.spec(&["hello"])?)?;
    let server: Server = direct.start()?;
    let error = server.create_as(|request| (request.stdout, request.stderr) = (uri.to_owned(), uri.to_owned()));
    let error = error.err().context("created without a logger")?.to_string();
    ensure!(words.iter().all(|word| error.contains(word)), "the cause lacks one of {words:?}: {error}");
    crate::harness::direct::refused(server.state(), ttrpc::Code::NOT_FOUND)?;
    server.shutdown()?;
    direct.remove()
}
