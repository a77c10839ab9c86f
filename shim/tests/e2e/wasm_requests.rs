//! Requests that guests send (`wasi:http/outgoing-handler` of WASI 0.2, `wasi:http/client` of 0.3): by the policy of their
//! container, and by TLS.
use crate::harness::command::{Running, output};
use crate::harness::{Case, Kind, Test};
use crate::wasm_network::{file, mount, run};
use crate::wasm_service::{connect, free};
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

pub const CASES: &[Case] = &[
    Case::new("by_policy", |test| {
        let server = Server::start()?;
        let (address, port) = (server.address.to_string(), server.address.port());
        let mounts = [mount(&file(test, "127.0.0.1 web.test\n")?, "/etc/hosts")];
        let (named, list) = (format!("web.test:{port}"), format!("web.test:{port} 10.0.0.0/8:*"));
        let cases = [
            ("", address.as_str(), "status 200\n"),
            ("pod", &named, "status 200\n"),
            (&address, &address, "status 200\n"),
            (&list, &named, "status 200\n"),
            // The name is on the list and its address isn't.
            (&list, &address, DENIED),
            ("none", &address, DENIED),
            ("none", &named, DENIED),
            ("127.0.0.1:1", &address, DENIED),
        ];
        for (number, (policy, authority, expected)) in cases.into_iter().enumerate() {
            request(test, number, policy, &mounts, ["http", authority], expected)?;
        }
        server.stop()
    })
    .kinds(CASE),
    Case::new("failures_have_names", |test| {
        let (hosts, resolv) = (
            file(test, "127.0.0.1 localhost\n")?,
            file(test, "nameserver 127.0.0.92\noptions timeout:1 attempts:1\n")?,
        );
        let mounts = [mount(&hosts, "/etc/hosts"), mount(&resolv, "/etc/resolv.conf")];
        request(test, 0, "", &mounts, ["http", &free()?.to_string()], "error 6\n")?;
        // Nobody answers at the name server's address.
        request(test, 1, "", &mounts, ["http", "nobody.test"], "error 0\n")
    })
    .kinds(CASE),
    Case::new("by_tls_of_nobody_known", |test| {
        let server = TlsServer::start(test)?;
        let (address, named) = (server.address.to_string(), format!("localhost:{}", server.address.port()));
        let mounts = [mount(&file(test, "127.0.0.1 localhost\n")?, "/etc/hosts")];
        // What the guest gets is an error of its own: it goes on.
        request(test, 0, "", &mounts, ["https", &address], UNTRUSTED)?;
        request(test, 1, "", &mounts, ["https", &named], UNTRUSTED)?;
        server.running.kill()?;
        // And one that speaks no TLS.
        let server = Server::start()?;
        request(test, 2, "", &mounts, ["https", &server.address.to_string()], "error 12\n")?;
        server.stop()
    })
    .kinds(CASE),
];

const CASE: &[Kind] = &[Kind::Core];

/// The numbers of `HTTP-request-denied` and `TLS-certificate-error`.
const DENIED: &str = "error 15\n";
const UNTRUSTED: &str = "error 13\n";

/// With a program of WASI 0.2, then one of 0.3.
fn request(test: &Test, number: usize, policy: &str, mounts: &[Value], to: [&str; 2], expected: &str) -> Result<()> {
    for program in ["/request.wasm", "/client.wasm"] {
        let output = run(test, number, policy, mounts, &[program, to[0], to[1]])?.exits(0)?;
        ensure!(output.stdout == expected, "{program}, {policy:?}, {to:?}: {expected:?} expected of {output}");
    }
    Ok(())
}

/// A server of HTTP that has nothing to say.
struct Server {
    address: SocketAddr,
    done: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Server {
    fn start() -> Result<Server> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, done) = (listener.local_addr()?, Arc::new(AtomicBool::new(false)));
        let ended = done.clone();
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                // Whatever a client does that speaks otherwise, the next one is answered.
                let _ = answer(client?);
            }
            Ok(())
        });
        Ok(Server { address, done, thread })
    }

    fn stop(self) -> Result<()> {
        self.done.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address)?);
        self.thread.join().map_err(|_| anyhow!("the server panicked"))?
    }
}

fn answer(client: TcpStream) -> Result<()> {
    let mut lines = BufReader::new(&client);
    loop {
        let mut line = Vec::new();
        lines.read_until(b'\n', &mut line)?;
        // TLS begins with a record of the type 22 (RFC 8446, 5.1).
        if [b"\r\n".as_slice(), b""].contains(&line.as_slice()) || line.first() == Some(&22) {
            break;
        }
    }
    (&client).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").context("answering")
}

/// A server of HTTPS whose certificate is its own word.
struct TlsServer {
    address: SocketAddr,
    running: Running,
}

impl TlsServer {
    fn start(test: &Test) -> Result<TlsServer> {
        let (key, certificate) = (test.containerd.fresh_path("key"), test.containerd.fresh_path("certificate"));
        let mut make = Command::new("openssl");
        make.args([
            "req",
            "-x509",
            "-nodes",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-days",
            "2",
        ]);
        make.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
        output(make.arg("-keyout").arg(&key).arg("-out").arg(&certificate), b"")?.exits(0)?;
        let address = free()?;
        let mut serve = Command::new("openssl");
        serve.args(["s_server", "-www", "-accept", &address.to_string()]);
        let running = Running::spawn(serve.arg("-key").arg(&key).arg("-cert").arg(&certificate))?;
        let server = TlsServer { address, running };
        drop(connect(address)?);
        Ok(server)
    }
}
