//! Services under load: by `wrk` and `hey`, and by clients of the tests' own where it has to be known what is under way.
use crate::harness::service::{memory, wrk};
use crate::harness::{Case, Kind, PATIENCE, Test, command};
use crate::wasm_service::{Service, annotation, are_in_flight, figures, free, in_flight};
use anyhow::{Context, Result, anyhow, bail, ensure};
use h2::client::{ResponseFuture, SendRequest};
use http::Request;
use prost::bytes::Bytes;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

pub const CASES: &[Case] = &[
    Case::new("no_request_fails", no_request_fails).kinds(CASE).only_newest(),
    Case::new("streams_of_http_2", |test| {
        let service = Service::start(test, &[])?;
        on_http_2(service.address, async |client| {
            for _ in 0..10 {
                all_answered(&client, "/", 50)?.await?;
            }
            Ok(())
        })?;
        service.ends("TERM", 0)
    })
    .kinds(CASE),
    Case::new("what_is_under_way_is_answered", |test| {
        let metrics = free()?;
        let others = [annotation("metrics-address", &metrics.to_string()), annotation("http-drain", "600")];
        let service = Service::start(test, &others.each_ref().map(String::as_str))?;
        let clients: Vec<TcpStream> = (0..16).map(|_| service.half_a_body()).collect::<Result<_>>()?;
        in_flight(metrics, clients.len())?;
        test.kill(&test.id, "TERM")?;
        service.stops_listening()?;
        for mut client in clients {
            client.write_all(b"y")?;
            let mut answer = String::new();
            client.read_to_string(&mut answer)?;
            let whole = answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("hello\n");
            ensure!(whole && answer.ends_with("\r\n0\r\n\r\n"), "{answer:?}");
        }
        service.ended(0)
    })
    .kinds(CASE),
    Case::new("streams_under_way_are_answered", |test| {
        let metrics = free()?;
        let others = [annotation("metrics-address", &metrics.to_string()), annotation("http-drain", "600")];
        let service = Service::start(test, &others.each_ref().map(String::as_str))?;
        on_http_2(service.address, async |client| {
            let mut streams = Vec::new();
            for _ in 0..16 {
                let request = Request::post("http://localhost/read").body(())?;
                streams.push(client.clone().ready().await?.send_request(request, false)?);
            }
            while !are_in_flight(metrics, streams.len())? {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            test.kill(&test.id, "TERM")?;
            for (answer, mut body) in streams {
                body.send_data(Bytes::new(), true)?;
                is_hello(answer).await?;
            }
            Ok(())
        })?;
        service.ended(0)
    })
    .kinds(CASE),
    Case::new("half_requests_hold_nobody_up", |test| {
        let service = Service::start(test, &[])?;
        let halves =
            ["G", "GET", "GET / HTTP/1.1\r\nHo", "PRI * HTTP/2.0\r\n\r\nSM", "POST / HTTP/1.1\r\nHost: a\r\nContent-"];
        let mut clients = Vec::new();
        for half in halves.iter().cycle().take(200) {
            let mut client = service.connect()?;
            client.write_all(half.as_bytes())?;
            clients.push(client);
        }
        for _ in 0..50 {
            ensure!(service.get("/")?.ends_with("\r\n\r\nhello\n"), "no answer");
        }
        // Nor does its end wait for them.
        let asked = Instant::now();
        service.ends("TERM", 0)?;
        ensure!(asked.elapsed() < Duration::from_secs(9), "it was waiting: {:?}", asked.elapsed());
        Ok(())
    })
    .kinds(CASE),
];

const CASE: &[Kind] = &[Kind::Core];

/// With connections that are kept and with new ones; the task answers meanwhile, and its memory is given back.
fn no_request_fails(test: &Test) -> Result<()> {
    let metrics = free()?;
    let service = Service::start(test, &[&annotation("metrics-address", &metrics.to_string())])?;
    let url = format!("http://{}/", service.address);
    // What a first load makes it take is kept for the next.
    wrk(&url, 32, 2)?;
    let before = memory(test.pid(&test.id)?, "Private_")?;
    thread::scope(|scope| {
        let load = scope.spawn(|| wrk(&url, 32, 4).map(drop));
        let other = scope.spawn(|| hey(&url));
        let mut asked = 0;
        while !(load.is_finished() && other.is_finished()) {
            ensure!(test.status(&test.id)? == "RUNNING", "it does not run");
            let stats = test.ctr(["tasks", "metrics", &test.id]).done()?;
            ensure!(stats.stdout.contains("memory"), "{stats}");
            asked += 1;
        }
        ensure!(asked > 0, "nothing was asked under load");
        for load in [load, other] {
            load.join().map_err(|_| anyhow!("a load panicked"))??;
        }
        Ok(())
    })?;
    in_flight(metrics, 0)?;
    let text = figures(metrics)?;
    for line in ["traps_total 0\n", "responses_total{code=\"4xx\"} 0\n", "responses_total{code=\"5xx\"} 0\n"] {
        ensure!(text.contains(&format!("hybrid_wasm_{line}")), "no {line}: {text}");
    }
    let after = memory(test.pid(&test.id)?, "Private_")?;
    ensure!(after < before + 16_000, "{after} kB after the load, {before} kB before");
    service.ends("TERM", 0)
}

/// Makes a connection for each request.
fn hey(url: &str) -> Result<()> {
    let mut hey = Command::new("hey");
    let hey = hey.args(["-n", "2000", "-c", "16", "-t", "60", "-disable-keepalive", url]);
    let output = command::output(hey, b"")?.exits(0)?;
    ensure!(output.stdout.contains("[200]\t2000 responses"), "{output}");
    Ok(())
}

/// Does something over one connection of HTTP/2.
fn on_http_2(address: SocketAddr, work: impl AsyncFnOnce(SendRequest<Bytes>) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let work = async {
        let stream = tokio::net::TcpStream::connect(address).await.context("connecting")?;
        let (client, connection) = h2::client::handshake(stream).await.context("beginning HTTP/2")?;
        let connection = tokio::spawn(connection);
        work(client).await?;
        connection.abort();
        Ok(())
    };
    match runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await }) {
        Ok(done) => done,
        Err(_) => bail!("no answer"),
    }
}

/// Sends requests at once, and waits for the answers of all.
fn all_answered(
    client: &SendRequest<Bytes>,
    path: &str,
    count: usize,
) -> Result<impl Future<Output = Result<()>> + use<>> {
    let mut answers = JoinSet::new();
    for _ in 0..count {
        let (client, request) = (client.clone(), Request::get(format!("http://localhost{path}")).body(())?);
        answers.spawn(async move {
            let (answer, _) = client.ready().await?.send_request(request, true)?;
            is_hello(answer).await
        });
    }
    Ok(async move {
        while let Some(answered) = answers.join_next().await {
            answered??;
        }
        Ok(())
    })
}

/// Waits for an answer to its end.
async fn is_hello(answer: ResponseFuture) -> Result<()> {
    let (head, mut body) = answer.await?.into_parts();
    let mut text = Vec::new();
    while let Some(bytes) = body.data().await {
        text.extend(bytes?);
    }
    ensure!(head.status == 200 && text == b"hello\n", "{head:?} {text:?}");
    Ok(())
}
