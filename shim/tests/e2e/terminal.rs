//! Terminals, of init and of exec'd processes: one pseudoterminal each, whose other side the shim copies.
use crate::harness::direct::refused;
use crate::harness::fifos::Fifos;
use crate::harness::pty::OnTerminal;
use crate::harness::task::Task;
use crate::harness::{Case, Test};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use ttrpc::Code;

pub const CASES: &[Case] = &[
    Case::new("of_init", |test| {
        let (task, io) = with_terminal(test, &["tty"], json!({}))?;
        seen(&io, "0")?;
        ended(task, 0)
    }),
    Case::new("of_an_exec", |test| {
        let task = test.task(&["pause"])?;
        let mut exec = task.exec("one", &["tty"])?.terminal();
        exec.spawn()?;
        seen(exec.io()?, "0")?;
        exec.finish()?.exits(0)?;
        task.end()
    }),
    Case::new("of_an_exec_where_init_has_one_too", |test| {
        let (task, io) = with_terminal(test, &["wait-stdin"], json!({}))?;
        io.stdout.wait_for("ready\r\n")?;
        let mut exec = task.exec("one", &["tty"])?.terminal();
        exec.spawn()?;
        exec.io()?.stdout.wait_for("name /dev/pts/1")?;
        // The console is init's.
        exec.io()?.stdout.wait_for("/dev/console other")?;
        exec.finish()?.exits(0)?;
        task.end()
    }),
    Case::new("all_three_streams", |test| {
        let (task, io) = with_terminal(test, &["isatty"], json!({}))?;
        io.stdout.wait_for("1 1 1\r\n")?;
        ended(task, 0)?;
        let task = test.task(&["pause"])?;
        let output = task.exec("terminal", &["isatty"])?.terminal().run()?.exits(0)?;
        ensure!(output.stdout == "1 1 1\r\n", "{output}");
        let output = task.exec("fifos", &["isatty"])?.run()?.exits(0)?;
        ensure!(output.stdout == "0 0 0\n", "{output}");
        task.end()
    })
    .all(),
    Case::new("owned_by_the_user", |test| {
        let (task, io) = with_terminal(test, &["tty"], json!({"user": {"uid": 1000, "gid": 1000}}))?;
        seen(&io, "1000")?;
        ended(task, 0)?;
        let task = test.task(&["pause"])?;
        let exec = task.exec("one", &["tty"])?.set("/user", json!({"uid": 1000, "gid": 1000}))?;
        let mut exec = exec.terminal();
        exec.spawn()?;
        seen(exec.io()?, "1000")?;
        exec.finish()?.exits(0)?;
        task.end()
    }),
    // Echoed by the terminal, then by the program.
    Case::new("lines", |test| {
        let (task, mut io) = with_terminal(test, &["wait-stdin"], json!({}))?;
        io.stdout.wait_for("ready\r\n")?;
        io.write(b"a line\n")?;
        io.stdout.wait_for("a line\r\na line\r\n")?;
        // End of file, as typed: ^D on a line of its own.
        io.write(b"\x04")?;
        ended(task, 0)
    })
    .all(),
    Case::new("lines_of_an_exec", |test| {
        let task = test.task(&["pause"])?;
        let mut exec = task.exec("one", &["wait-stdin"])?.terminal();
        exec.spawn()?;
        exec.io()?.stdout.wait_for("ready\r\n")?;
        exec.io()?.write(b"a line\n")?;
        exec.io()?.stdout.wait_for("a line\r\na line\r\n")?;
        exec.io()?.write(b"\x04")?;
        exec.finish()?.exits(0)?;
        task.end()
    })
    .all(),
    Case::new("interrupt_is_typed", |test| {
        let (task, mut io) = with_terminal(test, &["on-signal", "2", "44"], json!({}))?;
        io.stdout.wait_for("ready\r\n")?;
        io.write(b"\x03")?;
        io.stdout.wait_for("signal 2")?;
        ended(task, 44)
    }),
    Case::new("interrupt_ends_an_exec", |test| {
        let task = test.task(&["pause"])?;
        let mut exec = task.exec("one", &["spin"])?.terminal();
        exec.spawn()?;
        exec.io()?.stdout.wait_for("ready\r\n")?;
        exec.io()?.write(b"\x03")?;
        exec.finish()?.exits(130)?;
        task.end()
    })
    .all(),
    Case::new("raw_bytes", |test| {
        // Every byte, and more than the terminal's buffer (4096 bytes, termios(3)) holds.
        let bytes: Vec<u8> = (0..64 * 256).map(|n| (n % 256) as u8).collect();
        let (task, mut io) = with_terminal(test, &["raw", &bytes.len().to_string()], json!({}))?;
        io.stdout.wait_for("ready\n")?;
        // Kept open: the end of stdin hangs up.
        io.write(&bytes)?;
        ended(task, 0)?;
        let came = io.stdout.to_end()?;
        ensure!(came == [b"ready\n", bytes.as_slice()].concat(), "{} of {} bytes came back", came.len(), bytes.len());
        Ok(())
    }),
    Case::new("size", |test| {
        let (task, io) = with_terminal(test, &["sizes", "2"], json!({}))?;
        io.stdout.wait_for("ready\r\n")?;
        task.resize(132, 43).context("ResizePty")?;
        io.stdout.wait_for("size 43 132\r\n")?;
        task.resize(90, 30).context("ResizePty")?;
        io.stdout.wait_for("size 30 90\r\n")?;
        ended(task, 0)
    }),
    Case::new("size_of_an_exec", |test| {
        let task = test.task(&["pause"])?;
        let mut exec = task.exec("one", &["sizes", "1"])?.terminal();
        exec.spawn()?;
        exec.io()?.stdout.wait_for("ready\r\n")?;
        exec.resize(132, 43).context("ResizePty")?;
        exec.io()?.stdout.wait_for("size 43 132\r\n")?;
        exec.wait().context("Wait")?;
        ensure!(exec.resize(1, 1).is_err(), "the terminal of one that has ended was resized");
        exec.finish()?.exits(0)?;
        task.end()
    }),
    Case::new("size_of_the_spec", |test| {
        let (task, io) = with_terminal(test, &["tty"], json!({"consoleSize": {"width": 101, "height": 31}}))?;
        io.stdout.wait_for("size 31 101\r\n")?;
        ended(task, 0)
    }),
    Case::new("resize_before_the_start", |test| {
        let io = Fifos::new(test.containerd)?;
        let spec = test.spec(&["tty"])?.set("/process/terminal", json!(true))?;
        let task = test.created(spec, |request| {
            request.terminal = true;
            io.name(request);
        })?;
        task.resize(77, 22).context("ResizePty")?;
        task.start().context("Start")?;
        io.stdout.wait_for("size 22 77\r\n")?;
        ended(task, 0)
    }),
    // As runc's shim: whoever resizes needn't know.
    Case::new("resize_without_a_terminal", |test| {
        let task = test.task(&["pause"])?;
        task.resize(80, 25).context("ResizePty of init")?;
        let exec = task.exec("one", &["wait-stdin"])?;
        exec.spawn()?;
        exec.resize(80, 25).context("ResizePty of the exec")?;
        exec.kill(9).context("Kill")?;
        exec.finish()?.exits(137)?;
        task.end()
    })
    .all(),
    Case::new("resize_of_unknown", |test| {
        let task = test.task(&["pause"])?;
        refused(task.exec("nobody", &["hello"])?.resize(80, 25), Code::NOT_FOUND)?;
        task.end()
    }),
    Case::new("output_before_the_end_is_complete", |test| {
        let (task, io) = with_terminal(test, &["lines", "20000"], json!({}))?;
        ended(task, 0)?;
        complete(&String::from_utf8_lossy(&io.stdout.to_end()?))
    })
    .all(),
    Case::new("output_of_an_exec_before_its_end_is_complete", |test| {
        let task = test.task(&["pause"])?;
        complete(&task.exec("one", &["lines", "20000"])?.terminal().run()?.exits(0)?.stdout)?;
        task.end()
    })
    .all(),
    // What was sent is read; then the terminal hangs up.
    Case::new("hang_up_when_stdin_is_closed", |test| {
        let task = test.task(&["pause"])?;
        let mut exec = task.exec("one", &["on-signal", "1", "45"])?.terminal();
        exec.spawn()?;
        exec.io()?.stdout.wait_for("ready\r\n")?;
        exec.end_stdin()?;
        exec.finish()?.exits(45)?;
        task.end()
    }),
    Case::new("stdin_stays_open_without_its_client", |test| {
        let (task, mut io) = with_terminal(test, &["wait-stdin"], json!({}))?;
        io.stdout.wait_for("ready\r\n")?;
        io.write(b"one\n")?;
        io.stdout.wait_for("one\r\none\r\n")?;
        io.close_stdin();
        let mut again =
            std::fs::OpenOptions::new().write(true).open(io.path("stdin")).context("opening stdin again")?;
        std::io::Write::write_all(&mut again, b"two\n").context("writing")?;
        io.stdout.wait_for("two\r\ntwo\r\n")?;
        task.end()
    })
    .all(),
    Case::new("without_stdin", |test| {
        let io = Fifos::new(test.containerd)?;
        let spec = test.spec(&["isatty"])?.set("/process/terminal", json!(true))?;
        let task = test.created(spec, |request| {
            request.terminal = true;
            request.stdout = io.path("stdout");
            request.stderr = String::new();
        })?;
        task.start().context("Start")?;
        io.stdout.wait_for("1 1 1\r\n")?;
        ended(task, 0)
    })
    .all(),
    Case::new("killed", |test| {
        let (task, io) = with_terminal(test, &["spin"], json!({}))?;
        io.stdout.wait_for("ready\r\n")?;
        task.end()?;
        io.stdout.to_end().map(drop)
    })
    .all(),
    Case::new("by_ctr", by_ctr).all(),
    Case::new("size_by_ctr", size_by_ctr),
    Case::new("exec_by_ctr", exec_by_ctr).all(),
];

/// A started task with a terminal, and the client's side of it. `process` holds what else its process shall have.
fn with_terminal<'a>(test: &Test<'a>, arguments: &[&str], process: Value) -> Result<(Task<'a>, Fifos)> {
    let io = Fifos::new(test.containerd)?;
    let mut spec = test.spec(arguments)?.set("/process/terminal", json!(true))?;
    for (name, value) in process.as_object().context("an object")? {
        spec = spec.set(&format!("/process/{name}"), value.clone())?;
    }
    let task = test.created(spec, |request| {
        request.terminal = true;
        io.name(request);
    })?;
    task.start().context("Start")?;
    Ok((task, io))
}

/// Waits for the task's own end, with this code.
fn ended(task: Task, code: u32) -> Result<()> {
    let exit = task.wait().context("Wait")?;
    ensure!(exit.exit_status == code, "exit code {} instead of {code}", exit.exit_status);
    task.end()
}

/// What `probe tty` says of a terminal that is as it should be.
fn seen(io: &Fifos, owner: &str) -> Result<()> {
    io.stdout.wait_for("size ")?;
    let text = io.stdout.text();
    let expected = [
        "name /dev/pts/0",
        &format!("owner {owner} mode 620"),
        "session leader yes",
        "foreground yes",
        "/dev/tty ok",
        "echo yes",
    ];
    for line in expected {
        ensure!(text.contains(&format!("{line}\r\n")), "no {line:?} in {text:?}");
    }
    Ok(())
}

/// The lines from 1 to 20000, as a terminal ends them.
fn complete(text: &str) -> Result<()> {
    let wanted: String = (1..=20_000).map(|number| format!("{number}\r\n")).collect();
    ensure!(text == wanted, "{} of {} bytes, the last: {:?}", text.len(), wanted.len(), text.lines().last());
    Ok(())
}

/// `ctr run -t` on a terminal of the test's own.
fn by_ctr(test: &Test) -> Result<()> {
    let mut terminal = test.run(&["wait-stdin"]).flags(&["--tty"]).on_terminal()?;
    terminal.wait_for("ready\r\r\n")?;
    terminal.write(b"a line\r")?;
    // ctr leaves its own terminal's line ends on (OPOST, termios(3)).
    terminal.wait_for("a line\r\r\na line\r\r\n")?;
    terminal.write(b"\x04")?;
    terminal.finish()?.exits(0).map(drop)
}

/// ctr passes on the size of its own window.
fn size_by_ctr(test: &Test) -> Result<()> {
    let terminal = test.run(&["sizes", "2"]).flags(&["--tty"]).on_terminal()?;
    terminal.wait_for("size 24 80")?;
    test.kill(&test.id, "KILL")?;
    terminal.finish()?.exits(137).map(drop)
}

fn exec_by_ctr(test: &Test) -> Result<()> {
    test.run(&["spin"]).flags(&["--null-io"]).detach()?;
    let ctr =
        test.ctr(["tasks", "exec", "--tty", "--exec-id", "one", &test.id, test.kind.program(), "reply", "text", "6"]);
    let terminal = OnTerminal::spawn(ctr.command())?;
    terminal.wait_for("text")?;
    terminal.finish()?.exits(test.kind.code(6))?;
    test.kill(&test.id, "KILL")?;
    test.containerd.events.wait_for(&test.id, "/tasks/exit")?;
    test.delete(&test.id)
}
