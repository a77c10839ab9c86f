//! Services of `wasi:http`: how they are reached, and how they end.
use crate::harness::command::{Output, Running};
pub use crate::harness::service::free;
use crate::harness::{Case, Kind, PATIENCE, Test, eventually};
use anyhow::{Context, Result, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

pub const CASES: &[Case] = &[
    Case::new("requests_are_answered", |test| {
        let service = Service::start(test, &[])?;
        ensure!(service.get("/hello")?.ends_with("\r\n\r\nhello\n"), "no answer");
        let refused = service.exchange(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")?;
        ensure!(refused.starts_with("HTTP/1.1 400 "), "without a host: {refused}");
        service.ends("TERM", 0)
    })
    .kinds(CASE),
    Case::new("requests_of_http_2_are_answered", |test| {
        let service = Service::start(test, &[])?;
        let mut stream = service.connect()?;
        // The preface, empty settings, and a request: GET, http, /, and localhost as the authority (RFC 7541, appendix A).
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
        stream.write_all(b"\0\0\x0e\x01\x05\0\0\0\x01\x82\x86\x84\x41\x09localhost")?;
        let mut answer: Vec<u8> = Vec::new();
        while !answer.windows(6).any(|bytes| bytes == b"hello\n") {
            let mut buffer = [0; 1024];
            let length = stream.read(&mut buffer).context("reading the answer")?;
            ensure!(length > 0, "the connection ended: {answer:?}");
            answer.extend(&buffer[..length]);
        }
        drop(stream);
        service.ends("TERM", 0)
    })
    .kinds(CASE),
    Case::new("each_request_has_an_instance", |test| {
        let service = Service::start(test, &[])?;
        for _ in 0..3 {
            ensure!(service.get("/count")?.ends_with("\n1\n"), "an instance was used again");
        }
        service.ends("INT", 0)
    })
    .kinds(CASE),
    Case::new("instances_are_used_again_when_asked", |test| {
        let service = Service::start(test, &["io.containerd.hybrid.wasm.http-requests=2"])?;
        for count in ["1", "2", "1"] {
            let answer = service.get("/count")?;
            ensure!(answer.ends_with(&format!("\n{count}\n")), "not {count}: {answer}");
        }
        service.ends("TERM", 0)
    })
    .kinds(CASE),
    Case::new("a_trap_is_one_request_s", |test| {
        let service = Service::start(test, &[])?;
        ensure!(service.get("/trap")?.starts_with("HTTP/1.0 500 "), "a trap was answered");
        ensure!(service.get("/")?.ends_with("hello\n"), "the service is gone");
        test.kill(&test.id, "TERM")?;
        let output = service.output(0)?;
        for word in ["unreachable", "/service.wasm", "GET /trap"] {
            ensure!(output.stderr.contains(word), "no {word}: {output}");
        }
        Ok(())
    })
    .kinds(CASE),
    Case::new("a_loop_is_not_waited_for_for_ever", |test| {
        let service = Service::start(test, &["io.containerd.hybrid.wasm.http-drain=1"])?;
        let _looping = service.begin("/loop")?;
        ensure!(service.get("/")?.ends_with("hello\n"), "no answer");
        service.ends("TERM", 143)
    })
    .kinds(CASE),
    Case::new("loops_let_others_have_their_turn", |test| {
        let service = Service::start(test, &[])?;
        // More than there are threads.
        let threads = std::thread::available_parallelism()?.get();
        let looping: Vec<_> = (0..threads + 2).map(|_| service.begin("/loop")).collect::<Result<_>>()?;
        for _ in 0..3 {
            ensure!(service.get("/")?.ends_with("hello\n"), "no answer");
        }
        drop(looping);
        service.ends("KILL", 137)
    })
    .kinds(CASE),
    Case::new("a_loop_ends_with_its_client", |test| {
        let metrics = free()?;
        let shown = annotation("metrics-address", &metrics.to_string());
        let service = Service::start(test, &["io.containerd.hybrid.wasm.http-drain=1", &shown])?;
        let looping = service.begin("/loop")?;
        in_flight(metrics, 1)?;
        drop(looping);
        // Without this the service would end with 143, as above.
        service.running.wait_for_error("clients that are gone")?;
        service.ends("TERM", 0)
    })
    .kinds(CASE),
    Case::new("a_second_signal_ends_it_at_once", |test| {
        let service = Service::start(test, &["io.containerd.hybrid.wasm.http-drain=3600"])?;
        let _looping = service.begin("/loop")?;
        ensure!(service.get("/")?.ends_with("hello\n"), "no answer");
        test.kill(&test.id, "TERM")?;
        // It takes no more connections: so it has heard.
        service.stops_listening()?;
        service.ends("INT", 130)
    })
    .kinds(CASE),
    Case::new("connections_that_say_nothing_are_not_waited_for", |test| {
        let service = Service::start(test, &[])?;
        let (_silent, mut kept) = (service.connect()?, service.connect()?);
        kept.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
        let mut head = [0; 12];
        kept.read_exact(&mut head)?;
        ensure!(&head == b"HTTP/1.1 200", "{head:?}");
        service.ends("TERM", 0)
    })
    .kinds(CASE),
    Case::new("a_port_in_use_is_said", |test| {
        let taken = TcpListener::bind("127.0.0.1:0")?;
        let address = annotation("http-address", &taken.local_addr()?.to_string());
        let run = test.run_image("wasm-cases", &["/service.wasm"]).flags(&["--net-host", "--annotation", &address]);
        run.output()?.exits(1)?.refused(&["listen on 127.0.0.1:", "in use"]).map(drop)
    })
    .kinds(CASE),
    Case::new("it_says_where_it_listens", |test| {
        // In a network of its own.
        let running = test.run_image("wasm-cases", &["/service.wasm"]).spawn()?;
        running.wait_for_error("Serving HTTP on http://0.0.0.0:8080/\n")?;
        test.kill(&test.id, "TERM")?;
        running.finish()?.exits(0).map(drop)
    })
    .kinds(CASE),
    Case::new("the_environment_names_the_address", |test| {
        let run = test.run_image("wasm-cases", &["/service.wasm"]);
        let run = run.flags(&["--net-host", "--env", "WASMTIME_HTTP_PROXY_SOCKET_ADDR=nowhere"]);
        run.output()?.exits(1)?.refused(&["WASMTIME_HTTP_PROXY_SOCKET_ADDR", "nowhere"])?;
        let address = free()?;
        let variable = format!("WASMTIME_HTTP_PROXY_SOCKET_ADDR={address}");
        let id = test.other("right");
        let run = test.run_image("wasm-cases", &["/service.wasm"]).id(&id);
        let service = Service { test, id, address, running: run.flags(&["--net-host", "--env", &variable]).spawn()? };
        service.connect()?;
        service.ends("TERM", 0)
    })
    .kinds(CASE),
    Case::new("figures_of_a_service", |test| {
        let metrics = free()?;
        let service = Service::start(test, &[&annotation("metrics-address", &metrics.to_string())])?;
        service.get("/")?;
        service.get("/trap")?;
        let text = figures(metrics)?;
        for line in ["responses_total{code=\"2xx\"} 1\n", "responses_total{code=\"5xx\"} 1\n", "traps_total 1\n"] {
            ensure!(text.contains(&format!("hybrid_wasm_{line}")), "no {line}: {text}");
        }
        for name in ["linear_memory_bytes", "grow_refused_total", "instances", "instances_total", "requests_in_flight"]
        {
            ensure!(text.contains(&format!("\nhybrid_wasm_{name} ")), "no {name}: {text}");
        }
        service.ends("TERM", 0)
    })
    .kinds(CASE),
    Case::new("of_wasi_0_3", |test| {
        let service = Service::start_of(test, "/handler.wasm", &[])?;
        // The target is whole, though HTTP/1 has the host elsewhere.
        ensure!(service.get("/a/b?c=1")?.ends_with("\r\n\r\nlocalhost/a/b?c=1\n"), "no answer");
        // An instance that had nothing to do for a second is gone, which on a busy machine can be any.
        eventually("an instance is used again", || Ok(service.get("/count")?.ends_with("\n2\n").then_some(())))?;
        ensure!(service.get("/trap")?.starts_with("HTTP/1.0 500 "), "a trap was answered");
        ensure!(service.get("/count")?.ends_with("\n1\n"), "an instance that trapped is used again");
        let refused = service.exchange(b"GET / HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n")?;
        ensure!(refused.starts_with("HTTP/1.1 400 "), "with a wrong host: {refused}");
        service.ends("TERM", 0)
    })
    .kinds(CASE),
    Case::new("wasi_0_3_is_used_once_when_asked", |test| {
        let service = Service::start_of(test, "/handler.wasm", &["io.containerd.hybrid.wasm.http-requests=1"])?;
        for _ in 0..3 {
            ensure!(service.get("/count")?.ends_with("\n1\n"), "an instance was used again");
        }
        service.ends("INT", 0)
    })
    .kinds(CASE),
];

const CASE: &[Kind] = &[Kind::Core];

pub fn annotation(name: &str, value: &str) -> String {
    format!("io.containerd.hybrid.wasm.{name}={value}")
}

/// Connects as soon as somebody listens.
pub fn connect(address: SocketAddr) -> Result<TcpStream> {
    eventually(&format!("a connection to {address}"), || match TcpStream::connect(address) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(None),
        stream => {
            let stream = stream.with_context(|| format!("connecting to {address}"))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(Some(stream))
        }
    })
}

/// Sends a request and reads to the end of the connection.
pub fn exchange(stream: &mut TcpStream, request: &[u8]) -> Result<String> {
    stream.write_all(request)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the answer")?;
    Ok(answer)
}

/// The figures that are shown at an address.
pub fn figures(address: SocketAddr) -> Result<String> {
    exchange(&mut connect(address)?, b"GET /any HTTP/1.1\r\n\r\n")
}

/// Waits until so many requests are being answered.
pub fn in_flight(metrics: SocketAddr, count: usize) -> Result<()> {
    eventually(&format!("{count} requests under way"), || Ok(are_in_flight(metrics, count)?.then_some(())))
}

pub fn are_in_flight(metrics: SocketAddr, count: usize) -> Result<bool> {
    Ok(figures(metrics)?.contains(&format!("requests_in_flight {count}\n")))
}

/// A service in a container that has the test's network.
pub struct Service<'a> {
    test: &'a Test<'a>,
    pub id: String,
    pub address: SocketAddr,
    running: Running,
}

impl<'a> Service<'a> {
    /// Starts that of WASI 0.2, with further annotations.
    pub fn start(test: &'a Test<'a>, others: &[&str]) -> Result<Service<'a>> {
        Service::start_of(test, "/service.wasm", others)
    }

    /// Starts another.
    pub fn start_of(test: &'a Test<'a>, module: &str, others: &[&str]) -> Result<Service<'a>> {
        Service::start_with(test, module, others, &[])
    }

    /// Starts one with further flags of `ctr run`'s.
    pub fn start_with(test: &'a Test<'a>, module: &str, others: &[&str], flags: &[&str]) -> Result<Service<'a>> {
        let address = free()?;
        let annotation = annotation("http-address", &address.to_string());
        let run = test.run_image("wasm-cases", &[module]).flags(&["--net-host", "--annotation", &annotation]);
        let run = others.iter().fold(run, |run, other| run.flags(&["--annotation", other])).flags(flags);
        let service = Service { test, id: test.id.clone(), address, running: run.spawn()? };
        drop(service.connect()?);
        Ok(service)
    }

    pub fn connect(&self) -> Result<TcpStream> {
        connect(self.address)
    }

    pub fn exchange(&self, request: &[u8]) -> Result<String> {
        exchange(&mut self.connect()?, request)
    }

    pub fn get(&self, path: &str) -> Result<String> {
        // Of version 1.0, so that the answer comes in one piece and ends with the connection.
        self.exchange(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())
    }

    /// A connection with a request on it that is not waited for.
    pub fn begin(&self, path: &str) -> Result<TcpStream> {
        let mut stream = self.connect()?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())?;
        Ok(stream)
    }

    /// A connection with a request on it that is answered when its body has one more byte.
    pub fn half_a_body(&self) -> Result<TcpStream> {
        let mut stream = self.connect()?;
        stream.write_all(b"POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nx")?;
        Ok(stream)
    }

    /// Waits until it takes no connections any more.
    pub fn stops_listening(&self) -> Result<()> {
        eventually("it listens no more", || Ok(TcpStream::connect(self.address).is_err().then_some(())))
    }

    /// Sends a signal, and expects it to end.
    pub fn ends(self, signal: &str, code: i32) -> Result<()> {
        self.test.kill(&self.id, signal)?;
        self.ended(code)
    }

    /// Expects it to end.
    pub fn ended(self, code: i32) -> Result<()> {
        self.output(code).map(drop)
    }

    /// Expects it to end, and returns what it has said.
    pub fn output(self, code: i32) -> Result<Output> {
        self.running.finish()?.exits(code)
    }
}
