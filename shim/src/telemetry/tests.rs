//! Spans as a collector on the loopback interface gets them.

use super::*;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue as Attribute};
use opentelemetry_proto::tonic::trace::v1::Span as Exported;
use prost::Message as _;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;
use std::time::Instant;

const LIMIT: Duration = Duration::from_secs(10);
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Answers every call with this status.
struct Fixed(Code);

#[async_trait::async_trait]
impl MethodHandler for Fixed {
    async fn handler(&self, _: TtrpcContext, _: Request) -> Result<Response> {
        let mut response = Response::new();
        response.status = protobuf::MessageField::some(ttrpc::get_status(self.0, "words"));
        Ok(response)
    }
}

/// A service with one method, under telemetry for the collector at `address`.
fn traced(address: &str, variables: &[(&str, &str)], method: &str, code: Code) -> (Arc<Telemetry>, Methods) {
    let endpoint = format!("http://{address}");
    let variable = |name: &str| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(endpoint.clone()),
        name => variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()),
    };
    let config = Config::read(variable, config::read_hosts).unwrap().unwrap();
    let telemetry = Telemetry::new(config, "box", "n").unwrap();
    let inner: Box<dyn MethodHandler + Send + Sync> = Box::new(Fixed(code));
    let methods = Methods { methods: HashMap::from([(method.to_owned(), inner)]), streams: HashMap::new() };
    let mut services = telemetry.trace(HashMap::from([("a.b.Task".to_owned(), methods)]));
    (telemetry, services.remove("a.b.Task").unwrap())
}

async fn call(service: &Methods, method: &str, metadata: &[(&str, &str)], payload: &[u8]) {
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()])).collect();
    let context = TtrpcContext { metadata, ..Default::default() };
    let mut request = Request::new();
    request.payload = payload.to_vec();
    service.methods[method].handler(context, request).await.unwrap();
}

/// Takes one request and answers it.
fn collect(listener: TcpListener) -> JoinHandle<ExportTraceServiceRequest> {
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let read = stream.read(&mut buffer).unwrap();
            assert_ne!(read, 0, "cut off");
            bytes.extend(&buffer[..read]);
            let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let text = String::from_utf8(bytes[..head].to_vec()).unwrap().to_lowercase();
            assert!(text.starts_with("post /v1/traces http/1.1\r\n"), "{text}");
            assert!(text.contains("content-type: application/x-protobuf"), "{text}");
            let length = text.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
            if bytes.len() == head + 4 + length.parse::<usize>().unwrap() {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                return ExportTraceServiceRequest::decode(&bytes[head + 4..]).unwrap();
            }
        }
    })
}

fn text(attributes: &[Attribute], key: &str) -> Option<String> {
    let value = attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?;
    match value {
        AnyValue { value: Some(Value::StringValue(text)) } => Some(text),
        AnyValue { value: Some(Value::IntValue(number)) } => Some(number.to_string()),
        other => panic!("{key}: {other:?}"),
    }
}

/// Makes one call and returns the span that the collector got, with the attributes of its resource.
async fn exported(method: &str, code: Code, metadata: &[(&str, &str)], payload: &[u8]) -> (Exported, Vec<Attribute>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let collector = collect(listener);
    let (telemetry, service) = traced(&address, &[], method, code);
    call(&service, method, metadata, payload).await;
    telemetry.shutdown(LIMIT).await;
    let mut spans = collector.join().unwrap().resource_spans;
    assert_eq!((spans.len(), spans[0].scope_spans.len()), (1, 1));
    let span = spans[0].scope_spans[0].spans.remove(0);
    (span, spans.remove(0).resource.unwrap().attributes)
}

#[tokio::test]
async fn a_span_is_a_child_of_its_caller_s() {
    let metadata = [("traceparent", PARENT), ("tracestate", "vendor=1")];
    // message StartRequest { string id = 1; string exec_id = 2; }
    let (span, resource) = exported("Start", Code::OK, &metadata, b"\x0a\x03box\x12\x01e").await;
    assert_eq!(span.name, "a.b.Task/Start");
    assert_eq!(span.trace_id, hex("0af7651916cd43dd8448eb211c80319c"));
    assert_eq!(span.parent_span_id, hex("b7ad6b7169203331"));
    assert_eq!(span.trace_state, "vendor=1");
    assert_eq!(span.kind, opentelemetry_proto::tonic::trace::v1::span::SpanKind::Server as i32);
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 0);
    for (key, value) in [
        ("rpc.system", "ttrpc"),
        ("rpc.service", "a.b.Task"),
        ("rpc.method", "Start"),
        ("rpc.ttrpc.status_code", "0"),
        ("container.id", "box"),
        ("exec.id", "e"),
    ] {
        assert_eq!(text(&span.attributes, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(text(&resource, "service.name").as_deref(), Some("containerd-shim-box"));
    assert_eq!(text(&resource, "containerd.namespace").as_deref(), Some("n"));
}

#[tokio::test]
async fn without_a_caller_s_span_there_is_a_new_trace() {
    for metadata in [&[][..], &[("traceparent", "nonsense")]] {
        // The second field of this one is a path.
        let (span, _) = exported("Create", Code::OK, metadata, b"\x0a\x03box\x12\x07/bundle").await;
        assert!(span.parent_span_id.is_empty() && span.trace_id.len() == 16);
        assert_eq!(text(&span.attributes, "exec.id"), None);
    }
}

#[tokio::test]
async fn a_failure_of_the_shim_is_a_failed_span_and_an_expected_answer_is_not() {
    const ERROR: i32 = opentelemetry_proto::tonic::trace::v1::status::StatusCode::Error as i32;
    let (span, _) = exported("Start", Code::INTERNAL, &[], b"").await;
    assert_eq!(text(&span.attributes, "rpc.ttrpc.status_code").as_deref(), Some("13"));
    let status = span.status.unwrap();
    assert_eq!((status.code, status.message.as_str()), (ERROR, "words"));
    let (span, _) = exported("Start", Code::NOT_FOUND, &[], b"").await;
    assert_eq!(text(&span.attributes, "rpc.ttrpc.status_code").as_deref(), Some("5"));
    assert!(span.status.is_none_or(|status| status.code != ERROR));
}

#[tokio::test]
async fn what_its_caller_does_not_sample_is_not_exported() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (telemetry, service) = traced(&address, &[], "Start", Code::OK);
    call(&service, "Start", &[("traceparent", &PARENT.replace("-01", "-00"))], b"").await;
    telemetry.shutdown(LIMIT).await;
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_dead_collector_does_not_hold_up_calls_nor_the_end() {
    // Listens, and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (telemetry, service) = traced(&address, &[], "Start", Code::OK);
    let before = Instant::now();
    for _ in 0..4 * QUEUE {
        call(&service, "Start", &[], b"\x0a\x03box").await;
    }
    telemetry.shutdown(Duration::from_millis(200)).await;
    assert!(before.elapsed() < LIMIT, "{:?}", before.elapsed());
}

#[test]
fn the_subject_is_read_from_whatever_comes() {
    let of = |payload: &[u8]| subject(payload);
    assert_eq!(of(b""), (None, None));
    assert_eq!(of(b"\x0a\x01a\x12\x01b\x1a\x01c"), (Some("a".into()), Some("b".into())));
    assert_eq!(of(b"\x0a\x01a\x18\x01"), (Some("a".into()), None));
    assert_eq!(of(b"\x08\x01\x12\x01b"), (None, None));
    assert_eq!(of(b"\x0a\x7fa"), (None, None));
    assert_eq!(of(b"\x0a\x01\xff\x12\x00"), (None, None));
}

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
