//! WebAssembly's own figures, as Prometheus's text on request.
//!
//! They are counted always, and shown where the settings name an address: by a thread of its own, so that a guest which
//! computes can be looked at as well.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Bytes of linear memory.
    pub memory: AtomicUsize,
    /// How often a guest was refused to grow.
    pub refused: AtomicU64,
    /// Stores that there are, with an instance in each.
    pub instances: AtomicUsize,
    pub instances_total: AtomicU64,
    pub traps: AtomicU64,
    /// Requests that are being answered.
    pub requests: AtomicUsize,
    /// Requests that were answered, by the hundreds of their status from 1xx to 5xx.
    pub responses: [AtomicU64; 5],
}

/// How long a client may take for its request.
const PATIENCE: Duration = Duration::from_secs(5);

impl Metrics {
    /// In the text format, version 0.0.4 (Prometheus, "Exposition formats").
    fn text(&self) -> String {
        let mut text = String::new();
        let mut add = |name: &str, kind: &str, help: &str, values: &[(String, u64)]| {
            let _ = writeln!(text, "# HELP hybrid_wasm_{name} {help}\n# TYPE hybrid_wasm_{name} {kind}");
            for (labels, value) in values {
                let _ = writeln!(text, "hybrid_wasm_{name}{labels} {value}");
            }
        };
        let one = |value: u64| [(String::new(), value)];
        let size = |value: &AtomicUsize| one(value.load(Relaxed) as u64);
        let count = |value: &AtomicU64| one(value.load(Relaxed));
        add("linear_memory_bytes", "gauge", "Linear memory that guests have.", &size(&self.memory));
        add("grow_refused_total", "counter", "Growth of memories and tables that was refused.", &count(&self.refused));
        add("instances", "gauge", "Instances of the program that there are.", &size(&self.instances));
        add("instances_total", "counter", "Instances that there have been.", &count(&self.instances_total));
        add("traps_total", "counter", "Traps of guests.", &count(&self.traps));
        add("requests_in_flight", "gauge", "Requests that are being answered.", &size(&self.requests));
        let of_class = |(n, value): (usize, &AtomicU64)| (format!("{{code=\"{}xx\"}}", n + 1), value.load(Relaxed));
        let responses: Vec<_> = self.responses.iter().enumerate().map(of_class).collect();
        add("responses_total", "counter", "Requests that were answered, by status.", &responses);
        text
    }

    /// Shows them at an address from now on.
    pub fn serve(self: &Arc<Self>, address: SocketAddr) -> std::io::Result<()> {
        let listener = TcpListener::bind(address)?;
        let metrics = self.clone();
        std::thread::Builder::new().name("metrics".to_owned()).stack_size(64 << 10).spawn(move || {
            for stream in listener.incoming() {
                match stream {
                    // A client that is gone is none of ours.
                    Ok(stream) => drop(metrics.answer(stream)),
                    // Out of descriptors, for instance, which may pass.
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        })?;
        Ok(())
    }

    /// Answers one request: any path, as nothing else is here.
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut head: Vec<u8> = Vec::new();
        let mut buffer = [0; 1024];
        while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
            let length = stream.read(&mut buffer)?;
            if length == 0 || head.len() > 16 << 10 {
                return Ok(());
            }
            head.extend(&buffer[..length]);
        }
        let text = self.text();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            text.len()
        );
        stream.write_all(answer.as_bytes())
    }
}
