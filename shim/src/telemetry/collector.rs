//! The way to the collector: one HTTP/1.1 request for each batch of spans, on a connection of its own.
//!
//! Clients in libraries look names up by the C library, which a static binary can't do (see `config.rs`), and bring TLS or
//! as much code as the rest of the exporter. This one knows the address already and reads no more of an answer than its
//! head: the body of an OTLP answer repeats what the status says.

use http::HeaderMap;
use http::header::{CONTENT_LENGTH, RETRY_AFTER};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The largest head of an answer, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// A collector of spans.
#[derive(Debug)]
pub(super) struct Collector {
    /// For log lines.
    endpoint: String,
    addresses: Vec<SocketAddr>,
    /// For one request, from connecting to its answer.
    timeout: Duration,
    /// Whether the last request failed, which was logged.
    failing: AtomicBool,
}

impl Collector {
    pub fn new(endpoint: String, addresses: Vec<SocketAddr>, timeout: Duration) -> Self {
        Self { endpoint, addresses, timeout, failing: AtomicBool::new(false) }
    }

    fn send(&self, request: &Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let deadline = Instant::now() + self.timeout;
        let mut stream = self.connect(deadline)?;
        write_all(&mut stream, &head(request), deadline)?;
        write_all(&mut stream, request.body(), deadline)?;
        answer(&mut stream, deadline)
    }

    fn connect(&self, deadline: Instant) -> Result<TcpStream, HttpError> {
        let mut result = Err("the collector has no address".into());
        for address in &self.addresses {
            match TcpStream::connect_timeout(address, left(deadline)?) {
                Ok(stream) => return Ok(stream),
                Err(error) => result = Err(format!("connect to {address}: {error}").into()),
            }
        }
        result
    }

    /// A collector that is away makes one line, not one for each batch.
    fn report(&self, result: &Result<Response<Bytes>, HttpError>) {
        let problem = match result {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("the answer is {}", response.status())),
            Err(error) => Some(error.to_string()),
        };
        let (endpoint, was_failing) = (&self.endpoint, self.failing.swap(problem.is_some(), Ordering::Relaxed));
        match problem {
            Some(problem) if !was_failing => log::warn!("export spans to {endpoint}: {problem}"),
            Some(problem) => log::debug!("export spans to {endpoint}: {problem}"),
            None if was_failing => log::info!("spans are exported to {endpoint} again"),
            None => {}
        }
    }
}

#[async_trait::async_trait]
impl HttpClient for Collector {
    /// Blocks: it is called on the exporter's own thread, which does nothing else.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let result = self.send(&request);
        self.report(&result);
        result
    }
}

/// The time until the deadline; the calls that take it refuse zero.
fn left(deadline: Instant) -> Result<Duration, HttpError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err("timeout".into()) } else { Ok(left) }
}

fn head(request: &Request<Bytes>) -> Vec<u8> {
    let uri = request.uri();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let mut head = format!(
        "{} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n",
        request.method(),
        request.body().len()
    )
    .into_bytes();
    for (name, value) in request.headers().iter().filter(|(name, _)| *name != CONTENT_LENGTH) {
        head.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    head.extend(b"\r\n");
    head
}

fn write_all(stream: &mut TcpStream, mut bytes: &[u8], deadline: Instant) -> Result<(), HttpError> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        match stream.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("send the spans: {error}").into()),
        }
    }
    Ok(())
}

fn answer(stream: &mut TcpStream, deadline: Instant) -> Result<Response<Bytes>, HttpError> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = text.windows(4).position(|window| window == b"\r\n\r\n") {
            let response = parse(&text[..end])?;
            if !response.status().is_informational() {
                return Ok(response);
            }
            // The final answer follows (RFC 9110, 15.2).
            text.drain(..end + 4);
            continue;
        }
        if text.len() > MAX_HEAD {
            return Err("the answer's head has no end".into());
        }
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err("the collector hung up without an answer".into()),
            Ok(read) => text.extend(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("read the answer: {error}").into()),
        }
    }
}

/// The status, and the one header that the exporter looks at.
fn parse(head: &[u8]) -> Result<Response<Bytes>, HttpError> {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.split(' ').nth(1));
    let status: u16 = status.and_then(|status| status.parse().ok()).ok_or("the answer is not HTTP/1")?;
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case(RETRY_AFTER.as_str())
            && let Ok(value) = value.trim().parse()
        {
            headers.insert(RETRY_AFTER, value);
        }
    }
    let mut response = Response::builder().status(status).body(Bytes::new())?;
    *response.headers_mut() = headers;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// Sends one request to a collector that answers with `reply`; returns what it was sent, and what came of it.
    fn exchange(reply: &'static [u8]) -> (String, Result<Response<Bytes>, HttpError>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut text = Vec::new();
            let mut byte = [0];
            while !text.ends_with(b"spans") {
                stream.read_exact(&mut byte).unwrap();
                text.extend(byte);
            }
            stream.write_all(reply).unwrap();
            String::from_utf8(text).unwrap()
        });
        // The first address has nobody, as when only one of localhost's is listened on.
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let collector = Collector::new("http://collector".into(), vec![nobody, address], TIMEOUT);
        let request = Request::post("http://collector:4318/v1/traces?a=b").header("api-key", "secret");
        let result = collector.send(&request.body(Bytes::from_static(b"spans")).unwrap());
        (server.join().unwrap(), result)
    }

    #[test]
    fn a_request_is_complete_and_its_status_is_returned() {
        let (text, result) = exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\x00\x00");
        assert_eq!(
            text,
            "POST /v1/traces?a=b HTTP/1.1\r\nHost: collector:4318\r\nConnection: close\r\nContent-Length: 5\r\n\
             api-key: secret\r\n\r\nspans"
        );
        assert_eq!(result.unwrap().status(), 200);
    }

    #[test]
    fn answers_of_all_kinds_are_understood() {
        let (_, throttled) = exchange(b"HTTP/1.0 429 Too Many Requests\r\nretry-after: 7\r\n\r\n");
        let throttled = throttled.unwrap();
        assert_eq!((throttled.status().as_u16(), &throttled.headers()[RETRY_AFTER]), (429, &"7".parse().unwrap()));
        let (_, continued) = exchange(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\n\r\n");
        assert_eq!(continued.unwrap().status(), 202);
        assert!(exchange(b"").1.unwrap_err().to_string().contains("hung up"));
        assert!(exchange(b"220 smtp\r\n\r\n").1.unwrap_err().to_string().contains("not HTTP"));
    }

    #[test]
    fn a_collector_that_does_not_answer_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = vec![listener.local_addr().unwrap()];
        let collector = Collector::new("http://a".into(), addresses, Duration::from_millis(50));
        let request = Request::post("http://a/").body(Bytes::from_static(b"spans")).unwrap();
        assert!(collector.send(&request).is_err());
    }
}
