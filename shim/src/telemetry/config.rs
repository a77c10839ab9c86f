//! What OpenTelemetry's environment variables ask for.
//!
//! Source: the OpenTelemetry specification, "SDK environment variables" and "OTLP exporter configuration"; where it leaves a
//! choice, what containerd does (pkg/tracing/plugin/otlp.go). An empty variable is one that is not set.

use anyhow::{Context, Result, bail, ensure};
use http::Uri;
use opentelemetry_sdk::trace::Sampler;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// The time that one export may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The name that containerd gives itself, in the environment that the shim inherits.
const CONTAINERD: &str = "containerd";

/// A checked configuration of the exporter.
#[derive(Debug)]
pub(super) struct Config {
    /// The URL to post to.
    pub endpoint: String,
    /// The collector's, to be tried in turn; there is at least one.
    pub addresses: Vec<SocketAddr>,
    pub timeout: Duration,
    pub sampler: Sampler,
    /// `None` for a name made of the container's id.
    pub service_name: Option<String>,
    /// Whether the environment says how many spans may wait.
    pub queue_is_set: bool,
    /// What is passed over, in sentences.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads the variables; nothing when they ask for no traces. `hosts` is the text of hosts(5).
    ///
    /// # Errors
    /// For a protocol, an exporter or an endpoint that is not supported, with the variable's name.
    pub fn read(
        variable: impl Fn(&str) -> Option<String>,
        hosts: impl FnOnce() -> Result<String>,
    ) -> Result<Option<Config>> {
        // The first of the two that is set, and its name.
        let either = |specific: &'static str, general: &'static str| {
            [specific, general].into_iter().find_map(|name| Some((name, variable(name)?)))
        };
        let endpoint = either("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT");
        let Some((name, endpoint)) = endpoint else { return Ok(None) };
        let mut warnings = Vec::new();
        match variable("OTEL_SDK_DISABLED").as_deref() {
            None => {}
            Some(text) if is(text, &["true", "1", "t"]) => return Ok(None),
            Some(text) if is(text, &["false", "0", "f"]) => {}
            Some(text) => warnings.push(format!("OTEL_SDK_DISABLED={text} is neither true nor false: taken as false")),
        }
        match variable("OTEL_TRACES_EXPORTER").as_deref() {
            None | Some("otlp") => {}
            Some("none") => return Ok(None),
            Some(other) => bail!("OTEL_TRACES_EXPORTER={other} is not supported: only otlp is"),
        }
        match either("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL") {
            None => {}
            Some((_, protocol)) if protocol == "http/protobuf" => {}
            Some((name, other)) => bail!("{name}={other} is not supported: only http/protobuf is"),
        }
        if let Some((name, compression)) =
            either("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION")
            && compression != "none"
        {
            warnings.push(format!("{name}={compression} is not supported: spans are sent uncompressed"));
        }
        let timeout = match either("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT") {
            None => TIMEOUT,
            Some((name, text)) => match text.parse() {
                Ok(milliseconds @ 1..) => Duration::from_millis(milliseconds),
                _ => {
                    warnings.push(format!("{name}={text} is not a number of milliseconds: taken as {TIMEOUT:?}"));
                    TIMEOUT
                }
            },
        };
        // The general endpoint is where all signals go, each to a path of its own.
        let endpoint = match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => format!("{}/v1/traces", endpoint.trim_end_matches('/')),
            _ => endpoint,
        };
        let addresses = addresses(&endpoint, hosts).with_context(|| format!("{name}: {endpoint}"))?;
        Ok(Some(Config {
            endpoint,
            addresses,
            timeout,
            sampler: sampler(&variable, &mut warnings),
            service_name: service_name(&variable),
            queue_is_set: ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"]
                .iter()
                .any(|name| variable(name).is_some()),
            warnings,
        }))
    }
}

fn is(text: &str, words: &[&str]) -> bool {
    words.iter().any(|word| text.eq_ignore_ascii_case(word))
}

fn sampler(variable: impl Fn(&str) -> Option<String>, warnings: &mut Vec<String>) -> Sampler {
    let mut ratio = || match variable("OTEL_TRACES_SAMPLER_ARG").map(|text| (text.parse::<f64>(), text)) {
        None => 1.0,
        Some((Ok(ratio), _)) if (0.0..=1.0).contains(&ratio) => ratio,
        Some((_, text)) => {
            warnings.push(format!("OTEL_TRACES_SAMPLER_ARG={text} is not a number from 0 to 1: taken as 1"));
            1.0
        }
    };
    let parent_based = |root| Sampler::ParentBased(Box::new(root));
    match variable("OTEL_TRACES_SAMPLER").as_deref() {
        None | Some("parentbased_always_on") => parent_based(Sampler::AlwaysOn),
        Some("always_on") => Sampler::AlwaysOn,
        Some("always_off") => Sampler::AlwaysOff,
        Some("traceidratio") => Sampler::TraceIdRatioBased(ratio()),
        Some("parentbased_always_off") => parent_based(Sampler::AlwaysOff),
        Some("parentbased_traceidratio") => parent_based(Sampler::TraceIdRatioBased(ratio())),
        Some(other) => {
            warnings.push(format!("OTEL_TRACES_SAMPLER={other} is not supported: taken as parentbased_always_on"));
            parent_based(Sampler::AlwaysOn)
        }
    }
}

/// containerd names itself in the environment where nobody else has; the shim is another service.
fn service_name(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    variable("OTEL_SERVICE_NAME").filter(|name| name != CONTAINERD).or_else(|| {
        let attributes = variable("OTEL_RESOURCE_ATTRIBUTES")?;
        let mut attributes = attributes.split(',').filter_map(|attribute| attribute.split_once('='));
        attributes.find(|(key, _)| key.trim() == "service.name").map(|(_, name)| name.trim().to_owned())
    })
}

/// Where the collector listens. A static binary must not look names up by the C library, which would load the host's
/// modules for it (nsswitch.conf(5)); so a name must be in hosts(5).
fn addresses(endpoint: &str, hosts: impl FnOnce() -> Result<String>) -> Result<Vec<SocketAddr>> {
    let uri: Uri = endpoint.parse().context("not a URL")?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => bail!("https is not supported: name a collector on this host or in its network by http"),
        _ => bail!("not an http URL"),
    }
    let authority = uri.authority().context("the URL names no host")?;
    ensure!(
        !authority.as_str().contains('@'),
        "credentials in the URL are not supported: OTEL_EXPORTER_OTLP_HEADERS are"
    );
    let port = uri.port_u16().unwrap_or(80);
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let addresses = match host.parse() {
        Ok(address) => vec![address],
        Err(_) => find(&hosts()?, host),
    };
    ensure!(!addresses.is_empty(), "{host} is neither an address nor in {HOSTS}, and DNS is not asked");
    Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

const HOSTS: &str = "/etc/hosts";

/// The text of hosts(5); a host may do without.
pub(super) fn read_hosts() -> Result<String> {
    match std::fs::read_to_string(HOSTS) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        text => text.with_context(|| format!("read {HOSTS}")),
    }
}

fn find(hosts: &str, name: &str) -> Vec<IpAddr> {
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    let mut found: Vec<IpAddr> = lines
        .filter_map(|mut words| {
            let address = words.next()?.parse().ok()?;
            words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
        })
        .collect();
    if found.is_empty() && name.eq_ignore_ascii_case("localhost") {
        found = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS_TEXT: &str = "127.0.0.1 localhost\n::1 localhost\n10.1.2.3\tcollector collector.local # the agent\n";

    fn read(variables: &[(&str, &str)]) -> Result<Option<Config>> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Config::read(find, || Ok(HOSTS_TEXT.to_owned()))
    }

    fn with(variables: &[(&str, &str)]) -> Config {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        read(&[&[endpoint], variables].concat()).unwrap().unwrap()
    }

    fn error(variables: &[(&str, &str)]) -> String {
        format!("{:#}", read(variables).unwrap_err())
    }

    #[test]
    fn nothing_is_exported_unless_asked_for() {
        assert!(read(&[]).unwrap().is_none());
        assert!(read(&[("OTEL_SERVICE_NAME", "a"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).unwrap().is_none());
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_SDK_DISABLED", "1"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert!(read(&[endpoint, off]).unwrap().is_none(), "{off:?}");
        }
        assert!(with(&[("OTEL_SDK_DISABLED", "false")]).warnings.is_empty());
        assert_eq!(with(&[("OTEL_SDK_DISABLED", "maybe")]).warnings.len(), 1);
    }

    #[test]
    fn the_endpoint_of_traces_goes_before_that_of_all() {
        assert_eq!(with(&[]).endpoint, "http://127.0.0.1:4318/v1/traces");
        assert_eq!(with(&[]).addresses, ["127.0.0.1:4318".parse().unwrap()]);
        let base = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1]/otlp/")]).unwrap().unwrap();
        assert_eq!(base.endpoint, "http://[::1]/otlp/v1/traces");
        assert_eq!(base.addresses, ["[::1]:80".parse().unwrap()]);
        let own = with(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://10.0.0.1:9/in")]);
        assert_eq!(own.endpoint, "http://10.0.0.1:9/in");
    }

    #[test]
    fn names_are_found_in_the_hosts_file() {
        let of = |url: &str| read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", url)]).unwrap().unwrap().addresses;
        assert_eq!(of("http://Collector.local:4318"), ["10.1.2.3:4318".parse().unwrap()]);
        assert_eq!(of("http://localhost:1"), ["127.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap()]);
        assert_eq!(find("", "localhost").len(), 2);
        assert_eq!(find("10.0.0.1 localhost", "localhost").len(), 1);
        assert!(error(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://elsewhere:1")]).contains("elsewhere"));
    }

    #[test]
    fn what_is_not_done_is_refused_by_its_variable() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        let cases = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://127.0.0.1"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://user:secret@127.0.0.1"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "127.0.0.1:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "unix:///run/a"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://"),
        ];
        for case in cases {
            let error = error(&[endpoint, case]);
            assert!(error.contains(case.0), "{case:?}: {error}");
        }
        // The protocol of traces goes before that of all.
        with(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")]);
    }

    #[test]
    fn what_is_passed_over_is_said() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ] {
            let warnings = with(&[(name, value)]).warnings;
            assert!(warnings.len() == 1 && warnings[0].contains(name), "{name}: {warnings:?}");
        }
        assert_eq!(with(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")]).timeout, TIMEOUT);
        assert_eq!(with(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "250")]).timeout, Duration::from_millis(250));
        assert!(with(&[("OTEL_EXPORTER_OTLP_COMPRESSION", "none")]).warnings.is_empty());
    }

    #[test]
    fn samplers_have_the_names_of_the_specification() {
        let of = |name: &str, arg: &str| {
            let config = with(&[("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", arg)]);
            (format!("{:?}", config.sampler), config.warnings.len())
        };
        assert_eq!(format!("{:?}", with(&[]).sampler), "ParentBased(AlwaysOn)");
        assert_eq!(of("always_off", "x"), ("AlwaysOff".to_owned(), 0));
        assert_eq!(of("always_on", ""), ("AlwaysOn".to_owned(), 0));
        assert_eq!(of("traceidratio", "0.25"), ("TraceIdRatioBased(0.25)".to_owned(), 0));
        assert_eq!(of("parentbased_traceidratio", "2"), ("ParentBased(TraceIdRatioBased(1.0))".to_owned(), 1));
        assert_eq!(of("parentbased_always_off", ""), ("ParentBased(AlwaysOff)".to_owned(), 0));
    }

    #[test]
    fn the_service_is_named_by_others_than_containerd() {
        let of = |variables: &[(&str, &str)]| with(variables).service_name;
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("OTEL_SERVICE_NAME", "containerd")]), None);
        assert_eq!(of(&[("OTEL_SERVICE_NAME", "shims")]).as_deref(), Some("shims"));
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=a, service.name = nodes");
        assert_eq!(of(&[attributes]).as_deref(), Some("nodes"));
        assert_eq!(of(&[attributes, ("OTEL_SERVICE_NAME", "shims")]).as_deref(), Some("shims"));
    }
}
