//! A collector of traces: OTLP over HTTP, on the loopback interface.
use super::PATIENCE;
use anyhow::{Context, Result, bail, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// A span as it arrived, with the name of the service that sent it. Ids are in hexadecimal.
#[derive(Clone, Debug)]
pub struct Span {
    pub service: String,
    pub name: String,
    pub trace: String,
    pub id: String,
    pub parent: String,
    /// Those with a string or a number.
    attributes: Vec<(String, String)>,
}

impl Span {
    pub fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

type Spans = Arc<(Mutex<Vec<Span>>, Condvar)>;

/// Takes spans until the test's program ends.
pub struct Collector {
    address: String,
    spans: Spans,
}

impl Collector {
    pub fn start() -> Result<Collector> {
        let listener = TcpListener::bind("127.0.0.1:0").context("binding the collector's socket")?;
        let address = listener.local_addr().context("the collector's address")?.to_string();
        let spans = Spans::default();
        let collected = spans.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let collected = collected.clone();
                thread::spawn(move || {
                    // What is no request of OTLP shows as a span that does not come.
                    if let Err(error) = serve(stream, &collected) {
                        eprintln!("the collector: {error:#}");
                    }
                });
            }
        });
        Ok(Collector { address, spans })
    }

    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until a span is there that `wanted` says yes to.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Span) -> bool) -> Result<Span> {
        let (spans, changed) = &*self.spans;
        let spans = spans.lock().expect("no holder panics");
        let (spans, _) =
            changed.wait_timeout_while(spans, PATIENCE, |spans| !spans.iter().any(&wanted)).expect("no holder panics");
        match spans.iter().find(|span| wanted(span)) {
            Some(span) => Ok(span.clone()),
            None => bail!("no span {what} among {:#?}", *spans),
        }
    }

    /// What has come until now.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.0.lock().expect("no holder panics").clone()
    }
}

/// Answers the requests of one connection.
fn serve(stream: TcpStream, spans: &Spans) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone().context("sharing the connection")?);
    let mut writer = stream;
    loop {
        let mut length = None;
        let mut line = String::new();
        if reader.read_line(&mut line).context("reading a request")? == 0 {
            return Ok(());
        }
        ensure!(line.starts_with("POST /v1/traces HTTP/1.1"), "asked for {line:?}");
        loop {
            line.clear();
            reader.read_line(&mut line).context("reading a header")?;
            match line.trim().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = Some(value.trim().parse::<usize>().context("the length of a request")?);
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length.context("a request without a length")?];
        reader.read_exact(&mut body).context("reading spans")?;
        let request = ExportTraceServiceRequest::decode(body.as_slice()).context("decoding spans")?;
        let (collected, changed) = &**spans;
        collected.lock().expect("no holder panics").extend(flatten(request));
        changed.notify_all();
        writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").context("answering")?;
    }
}

fn flatten(request: ExportTraceServiceRequest) -> Vec<Span> {
    let mut flat = Vec::new();
    for resource in request.resource_spans {
        let attributes = resource.resource.map(|resource| texts(&resource.attributes)).unwrap_or_default();
        let service = attributes.into_iter().find(|(key, _)| key == "service.name").map(|(_, name)| name);
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            flat.push(Span {
                service: service.clone().unwrap_or_default(),
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                attributes: texts(&span.attributes),
                name: span.name,
            });
        }
    }
    flat
}

fn texts(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some((attribute.key.clone(), text.clone())),
        Value::IntValue(number) => Some((attribute.key.clone(), number.to_string())),
        _ => None,
    };
    attributes.iter().filter_map(text).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
