//! Traces: a span for each call of the task API, a child of the caller's, sent to a collector by OTLP.
//!
//! ```text
//! containerd ── ttrpc, metadata: traceparent, tracestate ──> method ── span ──> queue ──> exporter's thread ── HTTP ──> collector
//! ```
//! containerd passes its environment on to the shim, and with it OpenTelemetry's variables: they say whether there is a
//! collector ([`config`]). Without one nothing of this exists: no thread, and the methods are called as they are.
//!
//! Names and attributes are those of containerd's own interceptor (github.com/containerd/otelttrpc), so that the shim's
//! spans look like those of containerd's other services.

mod collector;
mod config;

use collector::Collector;
use config::Config;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanKind, Status, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, Span};
use protobuf::CodedInputStream;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use ttrpc::asynchronous::{MethodHandler, Service as Methods, TtrpcContext};
use ttrpc::proto::{Request, Response};
use ttrpc::{Code, Result};

/// How many spans may wait, where the environment does not say: a shim makes few, and each place takes memory.
const QUEUE: usize = 256;
/// How many of them make a batch.
const BATCH: usize = 64;

/// The exporter of one shim's spans.
pub struct Telemetry {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Telemetry {
    /// Starts the exporter's thread if the environment asks for traces. What it asks for and can't be had is logged; it
    /// never keeps a shim from running.
    ///
    /// `id` is the container that the shim was started for.
    pub fn from_env(id: &str, namespace: &str) -> Option<Arc<Telemetry>> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let config = Config::read(variable, config::read_hosts);
        match config.and_then(|config| config.map(|config| Telemetry::new(config, id, namespace)).transpose()) {
            Ok(telemetry) => telemetry,
            Err(error) => {
                log::warn!("no traces are exported: {error:#}");
                None
            }
        }
    }

    fn new(config: Config, id: &str, namespace: &str) -> anyhow::Result<Arc<Telemetry>> {
        for warning in &config.warnings {
            log::warn!("{warning}");
        }
        let service = config.service_name.unwrap_or_else(|| format!("containerd-shim-{id}"));
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("containerd.namespace", namespace.to_owned()))
            .with_attribute(KeyValue::new("process.pid", i64::from(std::process::id())))
            .build();
        log::debug!("exporting traces to {}", config.endpoint);
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new(config.endpoint.clone(), config.addresses, config.timeout))
            .with_endpoint(config.endpoint)
            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
            .with_timeout(config.timeout)
            .build()?;
        // Reads OTEL_BSP_* itself.
        let mut batch = BatchConfigBuilder::default();
        if !config.queue_is_set {
            batch = batch.with_max_queue_size(QUEUE).with_max_export_batch_size(BATCH);
        }
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batch.build()).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(config.sampler)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer(env!("CARGO_BIN_NAME"));
        Ok(Arc::new(Telemetry { provider, tracer }))
    }

    /// The same services, with a span around each call.
    pub fn trace(self: &Arc<Self>, services: HashMap<String, Methods>) -> HashMap<String, Methods> {
        let traced = |service: &str, method: String, inner| -> (String, Box<dyn MethodHandler + Send + Sync>) {
            let name = format!("{service}/{method}");
            let has_exec_id = EXEC_METHODS.contains(&method.as_str());
            let telemetry = self.clone();
            let traced =
                Traced { telemetry, service: service.to_owned(), method: method.clone(), name, has_exec_id, inner };
            (method, Box::new(traced))
        };
        services
            .into_iter()
            .map(|(service, Methods { methods, streams })| {
                let methods = methods.into_iter().map(|(method, inner)| traced(&service, method, inner)).collect();
                (service, Methods { methods, streams })
            })
            .collect()
    }

    /// Sends what is left, and waits for it no longer than `limit`. Spans that end later are dropped.
    pub async fn shutdown(&self, limit: Duration) {
        let provider = self.provider.clone();
        match tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(limit)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::debug!("the last spans were not exported: {error}"),
            Err(error) => log::error!("export the last spans: {error}"),
        }
    }
}

/// The methods whose requests name an exec by their second field (containerd: api/runtime/task/v3/shim.proto).
const EXEC_METHODS: [&str; 8] = ["State", "Start", "Delete", "Kill", "Wait", "Exec", "ResizePty", "CloseIO"];

/// A method of a service with a span around it.
struct Traced {
    telemetry: Arc<Telemetry>,
    service: String,
    method: String,
    /// Of the span: `<service>/<method>`.
    name: String,
    has_exec_id: bool,
    inner: Box<dyn MethodHandler + Send + Sync>,
}

#[async_trait::async_trait]
impl MethodHandler for Traced {
    async fn handler(&self, context: TtrpcContext, request: Request) -> Result<Response> {
        // Dropped with this future if the caller hangs up, which ends it too.
        let mut span = self.start(&context, &request);
        let result = self.inner.handler(context, request).await;
        end(&mut span, &result);
        result
    }
}

impl Traced {
    fn start(&self, context: &TtrpcContext, request: &Request) -> Span {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Metadata(&context.metadata));
        let (id, exec_id) = subject(&request.payload);
        let mut attributes = vec![
            KeyValue::new("rpc.system", "ttrpc"),
            KeyValue::new("rpc.service", self.service.clone()),
            KeyValue::new("rpc.method", self.method.clone()),
        ];
        attributes.extend(id.map(|id| KeyValue::new("container.id", id)));
        if self.has_exec_id {
            attributes.extend(exec_id.map(|id| KeyValue::new("exec.id", id)));
        }
        self.telemetry
            .tracer
            .span_builder(self.name.clone())
            .with_kind(SpanKind::Server)
            .with_attributes(attributes)
            .start_with_context(&self.telemetry.tracer, &parent)
    }
}

fn end(span: &mut Span, result: &Result<Response>) {
    let (code, message) = match result {
        Ok(response) => response.status.as_ref().map_or((Code::OK, ""), |status| (status.code(), status.message())),
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message()),
        Err(_) => (Code::UNKNOWN, "the request can't be decoded, or its answer not encoded"),
    };
    span.set_attribute(KeyValue::new("rpc.ttrpc.status_code", code as i64));
    // The others are answers that a caller may well expect.
    if let Code::UNKNOWN
    | Code::DEADLINE_EXCEEDED
    | Code::UNIMPLEMENTED
    | Code::INTERNAL
    | Code::UNAVAILABLE
    | Code::DATA_LOSS = code
    {
        span.set_status(Status::error(message.to_owned()));
    }
    span.end();
}

/// The metadata of a call. Its keys are in lower case (github.com/containerd/ttrpc, metadata.go).
struct Metadata<'a>(&'a HashMap<String, Vec<String>>);

impl Extractor for Metadata<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.first().map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

/// The first two fields of a request, where they are strings: in every request of the task API the first is the container's
/// id. Read without decoding the rest, which is for the method to do and to judge.
fn subject(payload: &[u8]) -> (Option<String>, Option<String>) {
    const LENGTH_DELIMITED: u32 = 2;
    let mut input = CodedInputStream::from_bytes(payload);
    let mut fields = [None, None];
    // In the order of their numbers, as every encoder writes them.
    while let Ok(Some(tag)) = input.read_raw_tag_or_eof() {
        let slot = match (tag >> 3, tag & 7) {
            (number @ (1 | 2), LENGTH_DELIMITED) => &mut fields[number as usize - 1],
            _ => break,
        };
        *slot = input.read_string().ok().filter(|text| !text.is_empty());
    }
    let [id, exec_id] = fields;
    (id, exec_id)
}

#[cfg(test)]
mod tests;
