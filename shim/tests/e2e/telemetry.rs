//! Traces, where the environment asks for them, and log lines at the level that containerd asks for.
use crate::harness::collector::{Collector, Span};
use crate::harness::command::{output, raw_output};
use crate::harness::direct::{Direct, Server};
use crate::harness::leaks::Process;
use crate::harness::{Case, NAMESPACE, Run, Test, limit};
use anyhow::{Context, Result, anyhow, ensure};
use containerd_shim_protos::api::{ConnectRequest, ConnectResponse, CreateTaskRequest, Empty};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::{EnumOrUnknown, Message};
use std::net::TcpListener;
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[
    Case::new("spans_of_calls", spans_of_calls).hybrid_only(), // runc's shim is built without
    Case::new("spans_through_containerd", spans_through_containerd).all().hybrid_only(),
    Case::new("collector_dead", |test| {
        // A port that nobody listens on.
        let nobody = TcpListener::bind("127.0.0.1:0").context("binding")?.local_addr().context("its address")?;
        let direct = test.direct()?.config(&test.spec(&["exit", "3"])?)?;
        let server = direct.started_with(|start| {
            start.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{nobody}"));
        })?;
        let before = Instant::now();
        life(&server, 3)?;
        end(server)?;
        // Shutdown waits two seconds for the last spans.
        ensure!(before.elapsed() < limit(Duration::from_secs(30)), "held up for {:?}", before.elapsed());
        let log = direct.log()?;
        ensure!(log.contains("level=warning") && log.contains(&nobody.to_string()), "{log}");
        direct.remove()
    })
    .hybrid_only(),
    Case::new("what_is_not_supported_is_logged", |test| {
        for (number, (name, value)) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://127.0.0.1:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://no.such.host:4318"),
        ]
        .into_iter()
        .enumerate()
        {
            let id = test.other(&number.to_string());
            let direct = Direct::new(test.containerd, test.runtime(), &id)?.config(&test.spec(&["hello"])?)?;
            let server = direct.started_with(|start| {
                start.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318").env(name, value);
            })?;
            end(server)?;
            let log = direct.log()?;
            let line = log.lines().find(|line| line.contains("no traces are exported"));
            let line = line.with_context(|| format!("not a word of {name}={value}: {log}"))?;
            ensure!(line.contains(name) && line.contains(value) && line.contains("level=warning"), "{line}");
            direct.remove()?;
        }
        Ok(())
    })
    .hybrid_only(),
    Case::new("log_levels_by_bootstrap_parameters", |test| {
        for (name, number, expected) in [
            ("trace", -8, &["debug", "info", "warning"][..]),
            ("debug", -4, &["debug", "info", "warning"]),
            // Between two: the nearest.
            ("verbose", -3, &["debug", "info", "warning"]),
            ("info", 0, &["info", "warning"]),
            ("warn", 4, &["warning"]),
            ("error", 8, &[]),
            ("panic", 12, &[]),
        ] {
            let direct = Direct::new(test.containerd, test.runtime(), &test.other(name))?;
            let direct = direct.config(&test.spec(&["hello"])?)?;
            let parameters = BootstrapParams { log_level: EnumOrUnknown::from_i32(number), ..direct.bootstrap() }
                .write_to_bytes()?;
            let answer = raw_output(&mut direct.command("start"), &parameters)?;
            let result = BootstrapResult::parse_from_bytes(&answer).context("decoding the answer")?;
            levels(&direct, direct.connect(&result.address, 3)?, expected).with_context(|| format!("at {name}"))?;
            direct.remove()?;
        }
        Ok(())
    })
    .hybrid_only(),
    Case::new("log_levels_by_flag", |test| {
        for (name, expected) in [("-debug", &["debug", "info", "warning"][..]), ("", &["info", "warning"])] {
            let direct = Direct::new(test.containerd, test.runtime(), &test.other(&format!("flag{name}")))?;
            let direct = direct.config(&test.spec(&["hello"])?)?;
            let server = if name.is_empty() {
                direct.start()?
            } else {
                // Flags come before the action.
                let started = output(direct.command(name).arg("start"), b"")?.exits(0)?;
                direct.connect(started.stdout.trim(), 2)?
            };
            levels(&direct, server, expected).with_context(|| format!("with {name:?}"))?;
            direct.remove()?;
        }
        Ok(())
    })
    .hybrid_only(),
    Case::new("log_lines_of_containerd", |test| {
        // The tests' containerd logs at the level debug, and so has its shims do.
        test.run(&["hello"]).done()?;
        let log = test.containerd.log()?;
        let own = format!("id={} namespace={NAMESPACE} runtime=io.containerd.hybrid.v1", test.id);
        for (level, message) in [("debug", "serving with pid"), ("info", "created with the executor")] {
            let line = log.lines().find(|line| line.contains(&own) && line.contains(message));
            let line = line.with_context(|| format!("no line of {} with {message:?}", test.id))?;
            ensure!(line.contains(&format!("level={level}")), "{line}");
        }
        Ok(())
    })
    .all()
    .hybrid_only(),
];

fn rpc<T>(result: ttrpc::Result<T>, what: &str) -> Result<T> {
    result.map_err(|error| anyhow!("{what}: {error}"))
}

/// Create to Delete.
fn life(server: &Server, status: u32) -> Result<()> {
    rpc(server.create(), "Create")?;
    rpc(server.start(), "Start")?;
    ensure!(rpc(server.wait(), "Wait")?.exit_status == status, "exit status");
    rpc(server.delete(), "Delete").map(drop)
}

/// Ends the shim and waits for its end.
fn end(server: Server) -> Result<()> {
    let connected: ConnectResponse = rpc(server.call("Connect", &ConnectRequest::new()), "Connect")?;
    let shim = Process::of(connected.shim_pid).context("the shim has ended")?;
    server.shutdown()?;
    drop(server);
    shim.wait_for_end()
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn spans_of_calls(test: &Test) -> Result<()> {
    let collector = Collector::start()?;
    let direct = test.direct()?.config(&test.spec(&["exit", "3"])?)?;
    let server = direct.started_with(|start| {
        start
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
            .env("OTEL_SERVICE_NAME", "shims")
            .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test");
    })?;
    // A call of a caller that traces, one of a caller that does not sample, and those of one that does not trace.
    let mut refused =
        CreateTaskRequest { id: test.id.clone(), bundle: "/no/such/bundle".to_owned(), ..Default::default() };
    let parents = [format!("00-{TRACE}-{PARENT}-01"), format!("00-{}-{PARENT}-00", TRACE.replace('0', "1"))];
    for parent in parents {
        let mut context = ttrpc::context::with_duration(crate::harness::PATIENCE);
        context.add("traceparent".to_owned(), parent);
        let created: ttrpc::Result<Empty> = server.call_in(context, "Create", &refused);
        ensure!(created.is_err(), "created from a bundle that does not exist");
        refused.bundle.push('x');
    }
    life(&server, 3)?;
    end(server)?;

    // The shim has ended, so all that it had to say is said.
    let of = |method: &str| -> Vec<Span> {
        let name = format!("containerd.task.v2.Task/{method}");
        collector.spans().into_iter().filter(|span| span.name == name).collect()
    };
    let creates = of("Create");
    let child = creates.iter().find(|span| span.parent == PARENT).context("no span is a child of the caller's")?;
    ensure!(child.trace == TRACE && child.service == "shims", "{child:?}");
    for (key, value) in [
        ("rpc.system", "ttrpc"),
        ("rpc.service", "containerd.task.v2.Task"),
        ("rpc.method", "Create"),
        // InvalidArgument
        ("rpc.ttrpc.status_code", "3"),
        ("container.id", test.id.as_str()),
    ] {
        ensure!(child.attribute(key) == Some(value), "{key} is not {value}: {child:?}");
    }
    ensure!(creates.len() == 2, "one of these is not sampled: {creates:?}");
    for method in ["Start", "Wait", "Delete", "Connect", "Shutdown"] {
        let spans = of(method);
        ensure!(spans.len() == 1, "{method}: {spans:?}");
        ensure!(spans[0].parent.is_empty() && spans[0].attribute("rpc.ttrpc.status_code") == Some("0"), "{spans:?}");
    }
    direct.remove()
}

/// containerd hands its environment to the shim; from 2.0 on its own spans are the parents of the shim's.
fn spans_through_containerd(test: &Test) -> Result<()> {
    let collector = Collector::start()?;
    let name = test.id.rsplit_once('-').map_or(test.id.as_str(), |(name, _)| name);
    let containerd = test.containerd.another_traced(name, &collector.url())?;
    let output = Run::probe(&containerd, test.kind, &test.id, &["hello"]).done()?;
    ensure!(output.stdout.starts_with("hello from"), "{output}");
    let service = format!("containerd-shim-{}", test.id);
    let is = |span: &Span, method: &str| span.service == service && span.name.ends_with(&format!(".Task/{method}"));
    for method in ["Create", "Start", "Wait", "Delete", "Shutdown"] {
        let span = collector.wait_for(method, |span| is(span, method))?;
        if containerd.line.starts_with("1.") {
            continue;
        }
        ensure!(!span.parent.is_empty(), "{span:?}");
        let caller = collector.wait_for("of the caller", |caller| caller.id == span.parent)?;
        ensure!(caller.trace == span.trace && caller.service == "containerd", "{caller:?} of {span:?}");
        ensure!(caller.name == span.name, "{caller:?} of {span:?}");
    }
    containerd.stop()
}

/// Has the shim log at every level that it has something for, ends it, and looks at its lines.
fn levels(direct: &Direct, server: Server, expected: &[&str]) -> Result<()> {
    rpc(server.create(), "Create")?;
    ensure!(server.create().is_err(), "created twice");
    rpc(server.delete(), "Delete")?;
    end(server)?;
    let log = direct.log()?;
    // Of these the shim itself has lines in such a life; libraries may have others.
    for level in ["debug", "info", "warning"] {
        let found = log.lines().any(|line| line.contains(&format!(" level={level} ")));
        let wanted = expected.contains(&level);
        ensure!(found == wanted, "lines of the level {level}: {found}\n{log}");
    }
    for line in log.lines() {
        let own = format!("id={} namespace={NAMESPACE} runtime=io.containerd.hybrid.v1", direct.id);
        ensure!(line.starts_with("time=\"") && line.contains(&own), "{line}");
    }
    Ok(())
}
