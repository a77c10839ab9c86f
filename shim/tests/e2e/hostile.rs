//! Clients that break the protocol or go away: the server lives on, answers the others, and keeps nothing of them.
use crate::harness::direct::Server;
use crate::harness::task::Task;
use crate::harness::{Case, PATIENCE, Runtime, Test, limit};
use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{CreateTaskRequest, StateRequest, Status, WaitRequest};
use protobuf::Message;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use ttrpc::proto::{Request, Response};

pub const CASES: &[Case] = &[
    Case::new("not_ttrpc", |test| {
        attack(test, |server| {
            for bytes in
                [&b"GET / HTTP/1.1\r\nHost: shim\r\n\r\n"[..], &[0; 4096], &[0xff; 4096], b"\n", b"\x16\x03\x01"]
            {
                // The server may have hung up before all of it was sent.
                let _ = connect(server)?.write_all(bytes);
            }
            Ok(())
        })
    }),
    Case::new("cut_off", |test| {
        attack(test, |server| {
            let frame = frame(1, REQUEST, &state(server)?);
            for end in [1, 4, 9, 10, 11, frame.len() / 2, frame.len() - 1] {
                connect(server)?.write_all(&frame[..end]).context("sending")?;
            }
            Ok(())
        })
    }),
    Case::new("too_long", |test| {
        attack(test, |server| {
            // The limit is 4 MB (ttrpc's PROTOCOL.md): announced, and in part or wholly sent.
            for length in [MAX + 1, 16 << 20, u32::MAX] {
                let mut header = frame(1, REQUEST, &[]);
                header[..4].copy_from_slice(&length.to_be_bytes());
                let _ = connect(server)?.write_all(&header);
                let _ = connect(server)?.write_all(&[header.as_slice(), &[0; 100_000]].concat());
            }
            let _ = connect(server)?.write_all(&frame(1, REQUEST, &vec![0xff; MAX as usize]));
            let _ = connect(server)?.write_all(&frame(1, REQUEST, &vec![0; MAX as usize + 1]));
            Ok(())
        })
    }),
    Case::new("unknown_frames", |test| {
        attack(test, |server| {
            let request = state(server)?;
            for (stream, kind) in [(1, 0), (1, 2), (1, 3), (1, 0xff), (0, REQUEST), (2, REQUEST), (u32::MAX, REQUEST)] {
                let _ = connect(server)?.write_all(&frame(stream, kind, &request));
            }
            // The same stream twice, and one before it.
            let mut connection = connect(server)?;
            for stream in [5, 5, 3] {
                let _ = connection.write_all(&frame(stream, REQUEST, &request));
            }
            Ok(())
        })
    })
    .hybrid_only(), // runc's of containerd 2 ends over them
    // Each is answered with an error, and the connection serves the next request.
    Case::new("unknown_calls", |test| {
        attack(test, |server| {
            let mut connection = connect(server)?;
            let service = server.service_name();
            for (stream, (service, method, payload)) in [
                ("containerd.task.v9.Task", "State", vec![]),
                ("", "", vec![]),
                (service, "NoSuchMethod", vec![]),
                (service, "State", vec![0xff; 100]),
                (service, "Create", vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
                (service, "Exec", vec![0x0a; 3000]),
            ]
            .into_iter()
            .enumerate()
            {
                let number = 2 * stream as u32 + 1;
                let request = encode(service, method, payload)?;
                connection.write_all(&frame(number, REQUEST, &request)).context("sending")?;
                let (answered, response) = answer(&mut connection)?;
                ensure!(answered == number, "stream {answered} was answered, not {number}");
                ensure!(response.status.code.value() != 0, "{service:?} {method:?} succeeded: {response:?}");
            }
            connection.write_all(&frame(101, REQUEST, &state(server)?)).context("sending")?;
            let (answered, response) = answer(&mut connection)?;
            ensure!(answered == 101 && response.status.code.value() == 0, "{response:?}");
            Ok(())
        })
    }),
    Case::new("hundred_connections", |test| {
        attack(test, |server| {
            let all = (0..100).map(|_| connect(server)).collect::<Result<Vec<_>>>()?;
            // Others are served while they are open.
            ensure!(server.again(2)?.state().is_ok() || server.again(3)?.state().is_ok(), "not served");
            drop(all);
            (0..100).try_for_each(|_| connect(server).map(drop))
        })
    }),
    Case::new("half_a_frame_keeps_nobody", |test| {
        attack(test, |server| {
            let mut slow = connect(server)?;
            slow.write_all(&frame(1, REQUEST, &state(server)?)[..12]).context("sending")?;
            let before = Instant::now();
            server.state().context("State")?;
            ensure!(before.elapsed() < limit(Duration::from_secs(2)), "State took {:?}", before.elapsed());
            Ok(())
        })
    }),
    Case::new("answers_are_not_read", |test| {
        attack(test, |server| {
            // More than the socket's buffers hold.
            let mut deaf = connect(server)?;
            deaf.set_write_timeout(Some(Duration::from_millis(200))).context("setting the time limit")?;
            let request = state(server)?;
            for stream in 0..20_000 {
                if deaf.write_all(&frame(2 * stream + 1, REQUEST, &request)).is_err() {
                    break;
                }
            }
            let before = Instant::now();
            server.state().context("State")?;
            ensure!(before.elapsed() < limit(Duration::from_secs(2)), "State took {:?}", before.elapsed());
            Ok(())
        })
    }),
    Case::new("hangs_up_while_it_waits", |test| {
        attack(test, |server| {
            let wait = WaitRequest { id: server.id.clone(), ..Default::default() };
            let request = encode(server.service_name(), "Wait", wait.write_to_bytes()?)?;
            for _ in 0..20 {
                let mut connection = connect(server)?;
                for stream in [1, 3, 5] {
                    connection.write_all(&frame(stream, REQUEST, &request)).context("sending")?;
                }
            }
            Ok(())
        })
    }),
    Case::new("hangs_up_during_create", hangs_up_during_create).all().hybrid_only(), // runc's gives up with its client, and what runc has made by then stays
];

const REQUEST: u8 = 1;
const MAX: u32 = 4 << 20;

/// A frame of ttrpc (its PROTOCOL.md): length, stream, type, flags, data.
fn frame(stream: u32, kind: u8, data: &[u8]) -> Vec<u8> {
    [&(data.len() as u32).to_be_bytes()[..], &stream.to_be_bytes(), &[kind, 0], data].concat()
}

fn encode(service: &str, method: &str, payload: Vec<u8>) -> Result<Vec<u8>> {
    let request = Request { service: service.to_owned(), method: method.to_owned(), payload, ..Default::default() };
    request.write_to_bytes().context("encoding a request")
}

fn state(server: &Server) -> Result<Vec<u8>> {
    let state = StateRequest { id: server.id.clone(), ..Default::default() };
    encode(server.service_name(), "State", state.write_to_bytes()?)
}

fn connect(server: &Server) -> Result<UnixStream> {
    UnixStream::connect(server.socket()).context("connecting")
}

/// The next answer, and the stream it is for.
fn answer(connection: &mut UnixStream) -> Result<(u32, Response)> {
    connection.set_read_timeout(Some(PATIENCE)).context("setting the time limit")?;
    let mut header = [0; 10];
    connection.read_exact(&mut header).context("reading an answer")?;
    let [a, b, c, d, e, f, g, h, ..] = header;
    let mut data = vec![0; u32::from_be_bytes([a, b, c, d]) as usize];
    connection.read_exact(&mut data).context("reading an answer")?;
    Ok((u32::from_be_bytes([e, f, g, h]), Response::parse_from_bytes(&data).context("decoding an answer")?))
}

/// What the server has open.
fn held(shim: u32) -> Result<(usize, usize)> {
    let count = |folder: &str| {
        let path = format!("/proc/{shim}/{folder}");
        std::fs::read_dir(&path).map(Iterator::count).with_context(|| format!("reading {path}"))
    };
    Ok((count("fd")?, count("task")?))
}

/// Does it to the shim of a running task, and looks whether the shim is as it was.
fn attack(test: &Test, with: impl Fn(&Server) -> Result<()>) -> Result<()> {
    let task: Task = test.task(&["pause"])?;
    let shim = task.connected().context("Connect")?.shim_pid;
    let version = if task.service_name().contains(".v3.") { 3 } else { 2 };
    // What only the first of something leaves open is not counted.
    with(&task)?;
    task.state().context("State")?;
    let before = settled(test, shim, None)?;
    with(&task)?;
    ensure!(task.state().context("State")?.status() == Status::RUNNING, "no longer running");
    ensure!(task.again(version)?.state().context("State")?.status() == Status::RUNNING, "no longer running");
    settled(test, shim, Some(before))?;
    task.end()
}

/// The number of descriptors and threads. A server notices some time later that a client has gone, and tells nobody: so
/// this asks until they are what they were, or have been the same for a moment.
fn settled(test: &Test, shim: u32, expected: Option<(usize, usize)>) -> Result<(usize, usize)> {
    let deadline = Instant::now() + PATIENCE / 4;
    let (mut last, mut since) = (held(shim)?, Instant::now());
    loop {
        // Go's runtime keeps threads once it has them; the shim of containerd 1.6 keeps a connection that ends within a
        // frame.
        let back = |wanted: (usize, usize)| match (test.runtime(), test.containerd.line.as_str()) {
            (Runtime::Hybrid, _) => last.0 <= wanted.0 && last.1 <= wanted.1,
            (Runtime::Runc, "1.6") => true,
            (Runtime::Runc, _) => last.0 <= wanted.0,
        };
        if expected.map_or(since.elapsed() > Duration::from_millis(500), back) {
            return Ok(last);
        }
        ensure!(Instant::now() < deadline, "descriptors and threads: {last:?} now, {expected:?} before");
        std::thread::sleep(Duration::from_millis(20));
        let now = held(shim)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

/// The container is made whole: containerd, back again, finds it by State.
fn hangs_up_during_create(test: &Test) -> Result<()> {
    let direct = test.direct()?.config(&test.spec(&["pause"])?)?;
    let server = direct.start()?;
    let create =
        CreateTaskRequest { id: test.id.clone(), bundle: direct.bundle.display().to_string(), ..Default::default() };
    let request = encode(server.service_name(), "Create", create.write_to_bytes()?)?;
    connect(&server)?.write_all(&frame(1, REQUEST, &request)).context("sending")?;
    test.containerd.events.wait_for(&test.id, "/tasks/create")?;
    ensure!(server.state().context("State")?.status() == Status::CREATED, "not created");
    server.start().context("Start")?;
    server.kill(9).context("Kill")?;
    server.wait().context("Wait")?;
    server.delete().context("Delete")?;
    server.shutdown()?;
    direct.remove()
}
