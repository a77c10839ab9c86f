//! Clients of a service that are many, slow, or don't say all.
use crate::harness::{Case, Kind, PATIENCE, eventually};
use crate::wasm_service::{Service, annotation, are_in_flight, figures, free, in_flight};
use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[
    Case::new("requests_beyond_256_wait", |test| {
        const MOST: usize = 256;
        let metrics = free()?;
        let service = Service::start(test, &[&annotation("metrics-address", &metrics.to_string())])?;
        let mut held: Vec<TcpStream> = (0..MOST).map(|_| service.half_a_body()).collect::<Result<_>>()?;
        in_flight(metrics, MOST)?;
        let mut waiting = service.begin("/")?;
        is_silent(&mut waiting)?;
        ensure!(are_in_flight(metrics, MOST)?, "not the {MOST} requests that were under way");
        let first = held.first_mut().context("a request")?;
        first.write_all(b"y")?;
        is_answered(first)?;
        is_answered(&mut waiting)?;
        drop(held);
        service.ends("TERM", 0)
    })
    .kinds(CASE),
    Case::new("an_instance_answers_128_requests", |test| {
        let metrics = free()?;
        let shown = annotation("metrics-address", &metrics.to_string());
        let service = Service::start_of(test, "/handler.wasm", &[&shown])?;
        let deadline = Instant::now() + PATIENCE;
        let count = || -> Result<u32> {
            let answer = service.get("/count")?;
            answer.trim_end().rsplit('\n').next().and_then(|line| line.parse().ok()).context(answer.clone())
        };
        // There may be several instances, and one that has nothing to do for a second is gone.
        let (mut answered, mut last) = (0, 0);
        while answered < 300 || last != 128 {
            last = count()?;
            answered += 1;
            ensure!(last <= 128, "an instance has answered {last} requests");
            ensure!(Instant::now() < deadline, "no instance has answered 128 requests");
        }
        eventually("no instance is left", || Ok(instances(metrics)?.eq(&0).then_some(())))?;
        ensure!(count()? == 1, "an instance is used again");
        service.ends("TERM", 0)
    })
    .kinds(CASE),
    Case::new("an_instance_answers_16_requests_at_once", |test| {
        let metrics = free()?;
        let shown = annotation("metrics-address", &metrics.to_string());
        let service = Service::start_of(test, "/handler.wasm", &[&shown])?;
        let mut held = Vec::new();
        // One after the other: more instances are made when none is free at that moment.
        while held.len() < 80 {
            held.push(service.begin("/hold")?);
            in_flight(metrics, held.len())?;
        }
        eventually("an instance for each 16", || Ok((instances(metrics)? >= held.len() / 16).then_some(())))?;
        ensure!(instances(metrics)? < held.len(), "an instance for each");
        service.ends("KILL", 137)
    })
    .kinds(CASE),
    Case::new("connections_beyond_1000_wait", |test| {
        const MOST: usize = 1000;
        let service = Service::start(test, &[])?;
        let pid = test.pid(&test.id)?;
        // Those of its own, and perhaps still the connection that showed that it listens.
        let before = sockets(pid)?;
        let mut held: Vec<TcpStream> = (0..MOST).map(|_| service.connect()).collect::<Result<_>>()?;
        eventually("it has taken the connections", || Ok((sockets(pid)? + 1 >= before + MOST).then_some(())))?;
        let mut waiting = service.begin("/")?;
        is_silent(&mut waiting)?;
        drop(held.pop());
        is_answered(&mut waiting)?;
        drop(held);
        service.ends("TERM", 0)
    })
    .kinds(CASE),
    Case::new("slow_readers_hold_nobody_up", |test| {
        const SLOW: usize = 8;
        let metrics = free()?;
        let shown = annotation("metrics-address", &metrics.to_string());
        let service = Service::start(test, &[&shown, &annotation("http-drain", "600")])?;
        let mut slow = Vec::new();
        for _ in 0..SLOW {
            let client = service.begin("/large")?;
            // The kernel takes less of the answer then.
            set_socket_recv_buffer_size(&client, 64 << 10)?;
            slow.push(client);
        }
        in_flight(metrics, SLOW)?;
        for _ in 0..10 {
            ensure!(service.get("/")?.ends_with("\r\n\r\nhello\n"), "no answer");
        }
        ensure!(are_in_flight(metrics, SLOW)?, "an answer that nobody has read is over");
        // The end waits for the one that is still there, and it gets all.
        let mut last = slow.pop().context("a slow reader")?;
        drop(slow);
        test.kill(&test.id, "TERM")?;
        service.stops_listening()?;
        let mut answer = Vec::new();
        last.read_to_end(&mut answer)?;
        let zeros = answer.iter().filter(|byte| **byte == 0).count();
        ensure!(zeros == 32 << 20, "{zeros} bytes of the answer");
        service.ended(0)
    })
    .kinds(CASE),
    Case::new("a_request_half_sent_at_the_end_may_be_completed", |test| {
        // It has a second, which a busy machine can take by itself.
        for _ in 0..5 {
            let service = Service::start(test, &[])?;
            let mut half = service.connect()?;
            half.write_all(b"GET / HTTP/1.1\r\nHo")?;
            // Answered later, so that was read before.
            ensure!(service.get("/")?.ends_with("hello\n"), "no answer");
            let answered = thread::scope(|scope| {
                let kill = scope.spawn(|| test.kill(&test.id, "TERM"));
                service.stops_listening()?;
                // Not at once: some of that second is used.
                thread::sleep(Duration::from_millis(300));
                let answered = half.write_all(b"st: a\r\n\r\n").is_ok() && is_answered(&mut half).is_ok();
                kill.join().map_err(|_| anyhow!("the signal's thread panicked"))?.map(|()| answered)
            })?;
            service.ended(0)?;
            if answered {
                return Ok(());
            }
        }
        bail!("a request that is completed within a second is not answered")
    })
    .kinds(CASE),
    Case::new("a_request_without_its_head_is_given_up_after_30_seconds", |test| {
        let service = Service::start(test, &[])?;
        let begun = Instant::now();
        let heads = ["", "G", "GET / HTTP/1.1\r\nHost: a\r\n"];
        let begin = |head: &&str| {
            let mut client = service.connect()?;
            client.write_all(head.as_bytes())?;
            Ok(client)
        };
        let clients: Vec<TcpStream> = heads.iter().map(begin).collect::<Result<_>>()?;
        for (mut client, head) in clients.into_iter().zip(heads) {
            let mut answer = Vec::new();
            client.read_to_end(&mut answer)?;
            ensure!(begun.elapsed() >= Duration::from_secs(30), "{head:?}: given up after {:?}", begun.elapsed());
        }
        service.ends("TERM", 0)
    })
    .kinds(CASE)
    .only_newest()
    .ignored(),
    Case::new("a_memory_larger_than_the_limit_is_503", |test| {
        let service = Service::start_with(test, "/large-service.wasm", &[], &["--memory-limit", "50331648"])?;
        for _ in 0..2 {
            let answer = service.get("/")?;
            ensure!(answer.starts_with("HTTP/1.0 503 "), "{answer}");
        }
        test.kill(&test.id, "TERM")?;
        service.output(0).and_then(|output| {
            ensure!(output.stderr.contains("/large-service.wasm") && output.stderr.contains("memory"), "{output}");
            Ok(())
        })?;
        let service = Service::start_with(test, "/large-service.wasm", &[], &["--memory-limit", "268435456"])?;
        ensure!(service.get("/")?.ends_with("\r\n\r\nhello\n"), "no answer with a limit that is large enough");
        service.ends("TERM", 0)
    })
    .kinds(CASE),
];

const CASE: &[Kind] = &[Kind::Core];

/// How many instances there are.
fn instances(metrics: SocketAddr) -> Result<usize> {
    let text = figures(metrics)?;
    let line = text.lines().find_map(|line| line.strip_prefix("hybrid_wasm_instances "));
    line.and_then(|count| count.parse().ok()).context(text.clone())
}

/// Nothing comes, for a time in which any answer would.
fn is_silent(client: &mut TcpStream) -> Result<()> {
    client.set_read_timeout(Some(Duration::from_millis(200)))?;
    match client.read(&mut [0; 64]) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
        other => bail!("not waiting: {other:?}"),
    }
    Ok(client.set_read_timeout(Some(PATIENCE))?)
}

fn is_answered(client: &mut TcpStream) -> Result<()> {
    let mut head = [0; 12];
    client.read_exact(&mut head).context("reading the answer")?;
    ensure!(&head == b"HTTP/1.1 200", "{:?}", String::from_utf8_lossy(&head));
    Ok(())
}

/// How many sockets a process has.
fn sockets(pid: u32) -> Result<usize> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).context("listing descriptors")?;
    let is_socket = |link: &std::path::PathBuf| link.to_string_lossy().starts_with("socket:");
    Ok(descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).filter(is_socket).count())
}
