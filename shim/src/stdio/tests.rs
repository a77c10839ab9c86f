use super::*;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use std::cell::Cell;
use std::io::{Read, Write};
use std::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

fn fifo(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    path
}

/// A client's end of an output, which it has from before.
fn client(path: impl AsRef<Path>) -> File {
    OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path).unwrap()
}

fn names(stdin: &str, stdout: &str, stderr: &str) -> Names {
    Names { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into(), terminal: false }
}

fn open_for(names: &Names, process: For) -> Result<(Streams, Prepared)> {
    let identity = Identity { id: "box".into(), namespace: "n".into() };
    match open(names, None, process, &identity)? {
        (Stdio::Streams(streams), prepared) => Ok((streams, prepared)),
        (Stdio::Terminal, _) => panic!("a terminal"),
    }
}

fn open_init(names: &Names) -> (Streams, Prepared) {
    open_for(names, For::Init).unwrap()
}

fn error(names: &Names) -> Error {
    open_for(names, For::Init).map(|_| ()).unwrap_err()
}

/// What `look` finds: soon, as a process that another test has forked has every descriptor until it executes.
fn soon<T>(look: impl FnMut() -> Option<T>) -> Option<T> {
    let (mut look, deadline) = (look, Instant::now() + MINUTE);
    loop {
        match look() {
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            found => return found,
        }
    }
}

/// Whether the end of file comes next.
fn has_ended(reader: &mut File) -> bool {
    let read = soon(|| match reader.read(&mut [0; 8]) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
        read => Some(read.unwrap()),
    });
    read == Some(0)
}

#[test]
fn nothing_named_is_null() {
    let (stdio, _) = open_init(&Names::default());
    assert!(stdio.stdin.is_none() && stdio.stdout.is_none() && stdio.stderr.is_none());
}

#[test]
fn fifos_block() {
    let dir = tempfile::tempdir().unwrap();
    let [i, o, e] = ["i", "o", "e"].map(|name| fifo(dir.path(), name).to_str().unwrap().to_owned());
    let _clients = [client(&o), client(&e)];
    let (stdio, _holders) = open_init(&names(&i, &o, &e));
    for fd in [stdio.stdin.unwrap(), stdio.stdout.unwrap(), stdio.stderr.unwrap()] {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));
    }
}

#[test]
fn output_survives_a_reader_and_ends_with_its_writer() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "o");
    let first = client(&path);
    let (stdio, holders) = open_init(&names("", path.to_str().unwrap(), ""));
    let mut container = File::from(stdio.stdout.unwrap());
    // The reader goes away, then there is none, then comes the next one: the container notices nothing.
    container.write_all(b"one ").unwrap();
    drop(first);
    container.write_all(b"two").unwrap();
    let mut reader = File::open(&path).unwrap();
    drop(container);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one two");
    drop(holders);
}

#[test]
fn a_client_that_is_on_its_way_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "o");
    // It opens its end when this thread is about to wait, or before.
    let own = path.clone();
    let client = std::thread::spawn(move || std::fs::read_to_string(own).unwrap());
    let (stdio, holders) = open_init(&names("", path.to_str().unwrap(), ""));
    File::from(stdio.stdout.unwrap()).write_all(b"short").unwrap();
    drop(holders);
    assert_eq!(client.join().unwrap(), "short");
}

#[test]
fn a_client_that_never_comes_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "o");
    assert!(open_when_read(&path, Duration::from_millis(20)).unwrap().is_none());
    // No reader is left of the waiting.
    let gone = soon(|| OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(&path).err()).unwrap();
    assert_eq!(gone.raw_os_error(), Some(ENXIO));
}

#[test]
fn stdin_ends_only_when_it_is_closed_by_both() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "i");
    let (stdio, mut holders) = open_init(&names(path.to_str().unwrap(), "", ""));
    let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
    writer.write_all(b"text").unwrap();
    drop(writer);
    let mut container = File::from(stdio.stdin.unwrap());
    let mut buffer = [0; 8];
    assert_eq!(container.read(&mut buffer).unwrap(), 4);
    // Were the shim's end not there, this read would return the end of file now.
    let reader = std::thread::spawn(move || container.read(&mut buffer).unwrap());
    let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
    writer.write_all(b"more").unwrap();
    assert_eq!(reader.join().unwrap(), 4);
    drop(writer);
    holders.stdin = None;
    let mut rest = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&path).unwrap();
    assert!(has_ended(&mut rest));
}

#[test]
fn a_file_is_made_with_its_folder_shared_and_appended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a b/log");
    let uri = format!("file://{}", path.to_str().unwrap().replace(' ', "%20"));
    for _ in 0..2 {
        let (stdio, _) = open_init(&names("", &uri, &uri));
        File::from(stdio.stdout.unwrap()).write_all(b"out ").unwrap();
        File::from(stdio.stderr.unwrap()).write_all(b"err ").unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "out err out err ");
}

#[test]
fn a_path_that_is_no_fifo_is_an_existing_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plain");
    std::fs::write(&path, "old ").unwrap();
    let (stdio, _) = open_init(&names("", path.to_str().unwrap(), ""));
    File::from(stdio.stdout.unwrap()).write_all(b"new").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old new");
    let missing = error(&names("", "", "/nonexistent/fifo"));
    assert_eq!(missing.kind(), Kind::InvalidArgument);
    assert!(missing.to_string().starts_with("stderr: open /nonexistent/fifo"), "{missing}");
}

#[test]
fn what_is_wrong_is_refused_by_name() {
    let logger = error(&names("", "binary:///no/such/logger?id=a", ""));
    assert_eq!(logger.kind(), Kind::FailedPrecondition);
    assert!(logger.to_string().contains("stdout: binary:///no/such/logger"), "{logger}");
    for bad in ["npipe://x", "file://", "binary://"] {
        assert_eq!(error(&names("", bad, "")).kind(), Kind::InvalidArgument, "{bad}");
    }
    for bad in ["file:///a", "binary:///a"] {
        assert_eq!(error(&names(bad, "", "")).kind(), Kind::InvalidArgument, "{bad}");
    }
    assert_eq!(error(&names("", "", "binary:///a")).kind(), Kind::InvalidArgument, "stdout's logger is both's");
}

#[tokio::test]
async fn output_of_an_exec_passes_a_pipe_and_ends_when_it_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "o");
    let own = path.clone();
    let reader = tokio::task::spawn_blocking(move || std::fs::read(own).unwrap());
    let (streams, prepared) = open_for(&names("", path.to_str().unwrap(), ""), For::Exec).unwrap();
    let output = prepared.run(None).unwrap().output;
    let mut process = File::from(streams.stdout.unwrap());
    // More than both pipes hold.
    let writer = tokio::task::spawn_blocking(move || {
        process.write_all(&[7; 1 << 20]).unwrap();
        process
    });
    // A process that lives on: it still has the pipe, and the reader gets to its end all the same.
    let _left = writer.await.unwrap();
    output.finish(Duration::from_millis(50)).await;
    assert_eq!(reader.await.unwrap(), [7; 1 << 20]);
}

#[tokio::test]
async fn a_logger_gets_the_output_and_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (script, log) = (dir.path().join("logger"), dir.path().join("log"));
    std::fs::write(&script, "#!/bin/sh\necho >&5; exec 5>&-; cat <&3 >$2; cat <&4 >>$2; echo $CONTAINER_ID >>$2\n")
        .unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let uri = format!("binary-v2://{}?to={}", script.display(), log.display());
    let (streams, prepared) = open_init(&names("", &uri, &uri));
    let output = prepared.run(None).unwrap().output;
    File::from(streams.stdout.unwrap()).write_all(b"out ").unwrap();
    File::from(streams.stderr.unwrap()).write_all(b"err ").unwrap();
    output.finish(Duration::from_secs(10)).await;
    assert_eq!(std::fs::read_to_string(log).unwrap(), "out err box\n");
}

/// A client and a process that has written `written`, with the shim's side of the stream.
async fn written(path: &Path, process: For, written: Vec<u8>) -> (File, Output) {
    let client = client(path);
    let (streams, prepared) = open_for(&names("", path.to_str().unwrap(), ""), process).unwrap();
    let output = prepared.run(None).unwrap().output;
    let mut process = File::from(streams.stdout.unwrap());
    tokio::task::spawn_blocking(move || process.write_all(&written).unwrap()).await.unwrap();
    (client, output)
}

/// Waits for a moment only.
async fn is_taken(output: &mut Output) -> bool {
    let moment = Duration::from_millis(20);
    let begun = Instant::now();
    output.taken(moment).await;
    begun.elapsed() < moment
}

#[tokio::test]
async fn output_is_taken_when_the_client_has_read_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut client, mut output) = written(&fifo(dir.path(), "o"), For::Init, b"four".into()).await;
    assert!(!is_taken(&mut output).await);
    client.read_exact(&mut [0; 3]).unwrap();
    assert!(!is_taken(&mut output).await);
    let reader = async {
        // By then it is waited for.
        tokio::task::yield_now().await;
        client.read_exact(&mut [0; 1]).unwrap();
    };
    let begun = Instant::now();
    tokio::join!(output.taken(MINUTE), reader);
    assert!(begun.elapsed() < MINUTE);
    assert!(is_taken(&mut output).await);
    // Nothing else has changed: the end of file is there, as no writer is left.
    assert!(has_ended(&mut client));
}

#[tokio::test]
async fn output_of_an_exec_is_taken_when_it_has_left_the_pipe_too() {
    let dir = tempfile::tempdir().unwrap();
    // More than the fifo holds, less than both.
    const WRITTEN: usize = 100_000;
    let (mut client, mut output) = written(&fifo(dir.path(), "o"), For::Exec, vec![7; WRITTEN]).await;
    let read = Cell::new(0);
    let reader = async {
        while read.get() < WRITTEN {
            match client.read(&mut [0; 4096]) {
                Ok(n) => read.set(read.get() + n),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
            tokio::task::yield_now().await;
        }
    };
    let taken = async {
        output.taken(MINUTE).await;
        read.get()
    };
    assert_eq!(tokio::join!(reader, taken).1, WRITTEN);
}

#[tokio::test]
async fn nobody_waits_for_a_client_that_is_not_there_or_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "o");
    let (client, mut output) = written(&path, For::Init, b"text".into()).await;
    let leaver = async {
        // By then it is waited for.
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(client);
    };
    let begun = Instant::now();
    tokio::join!(output.taken(MINUTE), leaver);
    output.taken(MINUTE).await;
    assert!(begun.elapsed() < MINUTE);
    // What was written is there for the next one.
    let mut next = self::client(&path);
    assert!(!is_taken(&mut output).await);
    assert_eq!(next.read(&mut [0; 8]).unwrap(), 4);
    assert!(is_taken(&mut output).await);
}

#[test]
fn the_same_without_inotify() {
    // user_namespaces(7): /proc/sys/user is the namespace's own.
    let script = "echo 0 >/proc/sys/user/max_inotify_instances && exec \"$@\"";
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c", script, "sh"]).arg(std::env::current_exe().unwrap());
    command.args(["output_is_taken_when", "output_of_an_exec_is_taken", "nobody_waits_for_a_client"]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("3 passed"), "{output:?}");
}
