//! The command line of `precompile`.

use crate::containerd::Access;
use anyhow::{Context, Result, bail};
use executors::WasmOptions;
use std::ffi::OsString;

pub const USAGE: &str = "\
Usage: containerd-shim-hybrid-v1 precompile [OPTION...] FILE...
       containerd-shim-hybrid-v1 precompile [OPTION...] --image REF...
       containerd-shim-hybrid-v1 precompile [OPTION...] --watch

Compiles WebAssembly modules and components into the cache that containers are started from
(/var/cache/hybrid/wasm, or HYBRID_WASM_CACHE).

  FILE                  a module's file
  --image               each REF is an image of containerd's: modules that are its layers, or else its entrypoint
  --watch               the images that containerd has, and whatever it pulls from now on, until SIGTERM
  --namespace NS        containerd's namespace (CONTAINERD_NAMESPACE, default); with --watch all, and it can be
                        given several times
  --address SOCKET      containerd's socket (CONTAINERD_ADDRESS, /run/containerd/containerd.sock)
  --cache-size SIZE     how large the cache may be, as for the handler (its option WasmCacheSize)
  --proposals LIST      the proposals that the handler has turned on (its option WasmProposals): they are part of
                        the code
  --help                this text

Exit code: 0 when all could be compiled, 1 when not, 2 for a wrong command line.
";

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Files(Vec<OsString>),
    Images(Vec<String>),
    /// Of these namespaces; none is all.
    Watch(Vec<String>),
}

#[derive(Debug)]
pub struct Request {
    pub command: Command,
    pub access: Access,
    pub options: WasmOptions,
}

impl Request {
    /// `None` asks for the usage text.
    ///
    /// # Errors
    /// What is wrong, by name.
    pub fn parse(args: &[OsString]) -> Result<Option<Request>> {
        let (mut image, mut watch, mut literal) = (false, false, false);
        let (mut namespaces, mut address, mut names) = (Vec::new(), None, Vec::new());
        let mut options = WasmOptions::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let Some(text) = arg.to_str().filter(|text| !literal && text.starts_with('-') && text.len() > 1) else {
                names.push(arg.clone());
                continue;
            };
            let (flag, given) = text.split_once('=').map_or((text, None), |(flag, value)| (flag, Some(value)));
            let mut value = || {
                let next = given.or_else(|| args.next().and_then(|arg| arg.to_str()));
                next.map(str::to_owned).with_context(|| format!("{flag} takes a value"))
            };
            match flag {
                "--help" | "-h" => return Ok(None),
                "--" => literal = true,
                "--image" => image = true,
                "--watch" => watch = true,
                "--namespace" | "-n" => namespaces.push(value()?),
                "--address" | "-a" => address = Some(value()?),
                "--cache-size" => options.set("WasmCacheSize", &value()?)?,
                "--proposals" => options.set("WasmProposals", &value()?)?,
                _ => bail!("unknown option {flag}"),
            }
            if given.is_some() && ["--image", "--watch", "--help", "-h", "--"].contains(&flag) {
                bail!("{flag} takes no value");
            }
        }
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let address = address.or_else(|| variable("CONTAINERD_ADDRESS"));
        let namespace = namespaces.last().cloned().or_else(|| variable("CONTAINERD_NAMESPACE"));
        let access = Access {
            address: address.unwrap_or_else(|| "/run/containerd/containerd.sock".to_owned()),
            namespace: namespace.unwrap_or_else(|| "default".to_owned()),
        };
        let command = match (image, watch, names.is_empty()) {
            (true, true, _) => bail!("--image and --watch exclude each other"),
            (false, true, false) => bail!("--watch takes no names"),
            (false, true, true) => Command::Watch(namespaces),
            (_, false, true) => bail!("nothing to compile"),
            (false, false, false) => Command::Files(names),
            (true, false, false) => {
                let names = names.into_iter().map(OsString::into_string).collect::<Result<_, _>>();
                Command::Images(names.ok().context("the name of an image is no text")?)
            }
        };
        Ok(Some(Request { command, access, options }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Option<Request>> {
        Request::parse(&args.iter().map(OsString::from).collect::<Vec<_>>())
    }

    fn parsed(args: &[&str]) -> Request {
        parse(args).unwrap().unwrap()
    }

    #[test]
    fn commands() {
        assert_eq!(parsed(&["a", "b"]).command, Command::Files(vec!["a".into(), "b".into()]));
        assert_eq!(parsed(&["--", "--image"]).command, Command::Files(vec!["--image".into()]));
        let request = parsed(&["--image", "i", "--namespace", "k8s.io", "--address=/s", "j"]);
        assert_eq!(request.command, Command::Images(vec!["i".into(), "j".into()]));
        assert_eq!((request.access.namespace.as_str(), request.access.address.as_str()), ("k8s.io", "/s"));
        let request = parsed(&["--watch", "-n", "a", "-n=b", "--proposals", "wide-arithmetic", "--cache-size=2Gi"]);
        assert_eq!(request.command, Command::Watch(vec!["a".into(), "b".into()]));
        assert_ne!(request.options, WasmOptions::default());
        assert!(parse(&["--help"]).unwrap().is_none());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (args, words) in [
            (&[][..], "nothing to compile"),
            (&["--image"], "nothing to compile"),
            (&["--image", "--watch"], "exclude"),
            (&["--watch", "a"], "no names"),
            (&["--watch=a"], "takes no value"),
            (&["--address"], "--address takes a value"),
            (&["--adress", "a"], "--adress"),
            (&["--proposals", "warp", "a"], "warp"),
        ] {
            let error = format!("{:#}", parse(args).unwrap_err());
            assert!(error.contains(words), "{args:?}: {error}");
        }
    }
}
