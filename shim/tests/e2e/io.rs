//! Where output goes when its reader is not simply there: readers that leave, and who holds a stream open.
use crate::exec::shared_pids;
use crate::harness::fifos::{self, Fifos};
use crate::harness::leaks::Process;
use crate::harness::{Case, Runtime, Test, eventually, limit};
use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::Status;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[
    Case::new("reader_goes_away_and_comes_back", comes_back).all(),
    Case::new("reader_goes_away_for_good", |test| {
        let folder = fifos::make(test.containerd)?;
        let (mut reader, _stderr) = (reader(&folder)?, reader_of(&folder, "stderr")?);
        let task = test.created(test.spec(&["wait-stdin"])?, |request| name(request, &folder))?;
        let mut stdin =
            OpenOptions::new().read(true).write(true).open(folder.join("stdin")).context("opening stdin")?;
        task.start().context("Start")?;
        ensure!(read_until(&mut reader, "ready\n")?.ends_with("ready\n"), "not ready");
        drop(reader);
        std::io::Write::write_all(&mut stdin, b"a line\n").context("writing to stdin")?;
        drop(stdin);
        task.close_io().context("CloseIO")?;
        // No SIGPIPE and no error: it has written its line to a pipe that still has a reader.
        ensure!(task.wait().context("Wait")?.exit_status == 0, "it did not outlive its reader");
        task.end()?;
        std::fs::remove_dir_all(&folder).context("removing the fifos")
    })
    .all(),
    Case::new("nobody_reads", |test| unread(test, false)).all(),
    Case::new("exit_waits_for_a_slow_reader", |test| exit_waits(test, false)).all().hybrid_only(),
    Case::new("exit_waits_for_a_slow_reader_of_a_terminal", |test| exit_waits(test, true)).all().hybrid_only(),
    Case::new("exit_waits_for_a_stuck_reader_for_a_while", |test| unread(test, true)).all(),
    Case::new("gigabyte_through_stdout", gigabyte).all(),
    Case::new("stdin_larger_than_a_pipe", |test| {
        let text = "0123456789abcde\n".repeat(65536);
        let mut io = Fifos::new(test.containerd)?;
        let task = test.created(test.spec(&["echo"])?, |request| io.name(request))?;
        task.start().context("Start")?;
        io.feed(text.clone().into_bytes())?;
        task.close_io().context("CloseIO")?;
        ensure!(task.wait().context("Wait")?.exit_status == 0, "exit status");
        task.end()?;
        let (stdout, _) = io.to_end()?;
        ensure!(stdout == text, "{} of {} bytes came back", stdout.len(), text.len());
        Ok(())
    })
    .all(),
    Case::new("stdin_before_the_start", |test| {
        let mut io = Fifos::new(test.containerd)?;
        let task = test.created(test.spec(&["echo"])?, |request| io.name(request))?;
        io.write(b"sent early")?;
        io.close_stdin();
        task.close_io().context("CloseIO")?;
        task.start().context("Start")?;
        ensure!(task.wait().context("Wait")?.exit_status == 0, "exit status");
        task.end()?;
        ensure!(io.to_end()?.0 == "sent early", "{:?}", io.to_end()?);
        Ok(())
    })
    .all(),
    Case::new("close_io_without_stdin", |test| {
        let task = test.task(&["pause"])?;
        task.close_io().context("CloseIO")?;
        ensure!(task.state().context("State")?.status() == Status::RUNNING, "no longer running");
        task.end()
    })
    .all(),
    // The kernel ends none of them: they hold stdout until the shim has killed them.
    Case::new("children_hold_stdout_in_a_shared_pid_namespace", |test| {
        let io = Fifos::new(test.containerd)?;
        let task = test.created(shared_pids(test, &["abandon", "3"])?, |request| io.name(request))?;
        task.start().context("Start")?;
        ensure!(task.wait().context("Wait")?.exit_status == 0, "exit status");
        let before = Instant::now();
        task.end()?;
        // runc's shim forgets those of an init that ends at once, until Delete.
        let seconds = if test.runtime() == Runtime::Runc { 15 } else { 5 };
        ensure!(before.elapsed() < limit(Duration::from_secs(seconds)), "Delete took {:?}", before.elapsed());
        io.to_end().map(drop)
    }),
    Case::new("one_fifo_for_both", |test| {
        let io = Fifos::new(test.containerd)?;
        let task = test.created(test.spec(&["say", "out ", "err "])?, |request| {
            io.name(request);
            request.stderr = request.stdout.clone();
        })?;
        task.start().context("Start")?;
        task.wait().context("Wait")?;
        task.end()?;
        let text = String::from_utf8_lossy(&io.stdout.to_end()?).into_owned();
        ensure!(["out err ", "err out "].contains(&text.as_str()), "{text:?}");
        Ok(())
    })
    .all(),
    Case::new("fifo_missing", |test| {
        let direct = test.direct()?.config(&test.spec(&["hello"])?)?;
        let server = direct.start()?;
        let error = server.create_as(|request| request.stdin = "/no/such/fifo".to_owned());
        let error = error.err().context("created without its stdin")?.to_string();
        ensure!(error.contains("/no/such/fifo"), "{error}");
        server.shutdown()?;
        direct.remove()
    })
    .hybrid_only(), // runc's makes a fifo of it
    Case::new("scheme_unknown", |test| {
        let direct = test.direct()?.config(&test.spec(&["hello"])?)?;
        let server = direct.start()?;
        let error = server.create_as(|request| request.stdout = "gopher://somewhere/path".to_owned());
        let error = error.err().context("created with an unknown scheme")?.to_string();
        ensure!(error.contains("gopher"), "{error}");
        server.shutdown()?;
        direct.remove()
    })
    .all(),
];

fn name(request: &mut containerd_shim_protos::api::CreateTaskRequest, folder: &Path) {
    let path = |name: &str| folder.join(name).display().to_string();
    (request.stdin, request.stdout, request.stderr) = (path("stdin"), path("stdout"), path("stderr"));
}

/// A reader of stdout whose open waits for nobody.
fn reader(folder: &Path) -> Result<File> {
    reader_of(folder, "stdout")
}

fn reader_of(folder: &Path, name: &str) -> Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(fifos::NONBLOCK).open(folder.join(name));
    let file = file.with_context(|| format!("opening {name}"))?;
    rustix::fs::fcntl_setfl(&file, OFlags::empty()).context("making it wait")?;
    Ok(file)
}

/// Reads until the text ends with `end`.
fn read_until(reader: &mut File, end: &str) -> Result<String> {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(end.as_bytes()) {
        ensure!(
            reader.read(&mut byte).context("reading stdout")? == 1,
            "ended after {:?}",
            String::from_utf8_lossy(&text)
        );
        text.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// As a client does when containerd restarts: not a byte is lost, and nothing is told to the program.
fn comes_back(test: &Test) -> Result<()> {
    let folder = fifos::make(test.containerd)?;
    let mut first = reader(&folder)?;
    let _stderr = reader_of(&folder, "stderr")?;
    let task = test.created(test.spec(&["lines", "200000"])?, |request| name(request, &folder))?;
    task.start().context("Start")?;
    let mut text = read_until(&mut first, "1000\n")?;
    drop(first);
    for line in ["50000\n", "50001\n"] {
        // More is waiting in the pipe whenever this reader leaves.
        text += &read_until(&mut reader(&folder)?, line)?;
    }
    ensure!(task.state().context("State")?.status() == Status::RUNNING, "it did not outlive its reader");
    let mut last = reader(&folder)?;
    let waited = std::thread::scope(|scope| {
        let rest = scope.spawn(move || {
            let mut rest = String::new();
            last.read_to_string(&mut rest).map(|_| rest)
        });
        let waited = task.wait().context("Wait")?;
        // What is left in the pipe is the reader's, before and after.
        task.delete().context("Delete")?;
        text += &rest.join().expect("reading does not panic").context("reading the rest")?;
        Ok::<_, anyhow::Error>(waited)
    })?;
    ensure!(waited.exit_status == 0, "{waited:?}");
    let wanted: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    ensure!(text == wanted, "{} of {} bytes", text.len(), wanted.len());
    task.remove()?;
    std::fs::remove_dir_all(&folder).context("removing the fifos")
}

/// Nobody reads the output: whoever could is gone, or `stays` and doesn't.
fn unread(test: &Test, stays: bool) -> Result<()> {
    let folder = fifos::make(test.containerd)?;
    // They are there for Create in any case: that of runc's shim waits for them.
    let readers = (reader(&folder)?, reader_of(&folder, "stderr")?);
    let task = test.created(test.spec(&["say", "out", "err"])?, |request| name(request, &folder))?;
    let _readers = stays.then_some(readers);
    task.start().context("Start")?;
    ensure!(task.wait().context("Wait")?.exit_status == 0, "exit status");
    let before = Instant::now();
    task.end()?;
    ensure!(before.elapsed() < limit(Duration::from_secs(15)), "Delete took {:?}", before.elapsed());
    std::fs::remove_dir_all(&folder).context("removing the fifos")
}

/// containerd 2's client closes its ends of the streams when it hears of the exit: what it has not read by then is lost.
fn exit_waits(test: &Test, terminal: bool) -> Result<()> {
    /// How long the shim waits.
    const LIMIT: Duration = Duration::from_secs(2);
    let folder = fifos::make(test.containerd)?;
    let texts = if terminal { ["out", ""] } else { ["out", "err"] };
    let readers = [reader(&folder)?, reader_of(&folder, "stderr")?];
    let spec = test.spec(&["say", texts[0], texts[1]])?;
    let task = test.created(spec.set("/process/terminal", terminal.into())?, |request| {
        name(request, &folder);
        request.terminal = terminal;
        if terminal {
            request.stderr.clear();
        }
    })?;
    let begun = Instant::now();
    task.start().context("Start")?;
    eventually("the end of init", || Ok((!Path::new(&format!("/proc/{}", task.pid)).exists()).then_some(())))?;
    for (mut reader, text) in readers.into_iter().zip(texts).filter(|(_, text)| !text.is_empty()) {
        let status = task.state().context("State")?.status();
        ensure!(status == Status::RUNNING || begun.elapsed() >= LIMIT, "{status:?} before {text} was read");
        let read = read_until(&mut reader, text)?;
        ensure!(read == text, "{read:?}");
    }
    ensure!(task.wait().context("Wait")?.exit_status == 0, "exit status");
    task.end()?;
    std::fs::remove_dir_all(&folder).context("removing the fifos")
}

/// The processor time the shim takes for it: copied by runc's, it is more than a second.
fn gigabyte(test: &Test) -> Result<()> {
    const BYTES: u64 = 1_000_000_000;
    let folder = fifos::make(test.containerd)?;
    let (mut reader, _stderr) = (reader(&folder)?, reader_of(&folder, "stderr")?);
    let task = test.created(test.spec(&["bytes", &BYTES.to_string()])?, |request| name(request, &folder))?;
    let shim = task.connected().context("Connect")?.shim_pid;
    let before = Process::cpu_time(shim)?;
    task.start().context("Start")?;
    let (mut came, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        let n = reader.read(&mut buffer).context("reading stdout")?;
        came += n as u64;
        if n == 0 || came == BYTES {
            break;
        }
    }
    let spent = Process::cpu_time(shim)? - before;
    ensure!(came == BYTES, "{came} bytes");
    ensure!(test.runtime() == Runtime::Runc || spent < limit(Duration::from_millis(300)), "the shim took {spent:?}");
    ensure!(task.wait().context("Wait")?.exit_status == 0, "exit status");
    task.end()?;
    std::fs::remove_dir_all(&folder).context("removing the fifos")
}
