//! What a profile may say.

use libseccomp::{ScmpAction, ScmpFilterContext};
use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompFilterFlag};

use super::{ARCHITECTURES, action, condition, flags};
use crate::sys;

/// For the features document (OCI runtime spec, features-linux.md "Seccomp"): of the names that the spec has, those that are
/// compiled; architectures as far as the libseccomp in use has them, and flags that the kernel takes apart from those known.
pub(crate) fn features() -> serde_json::Value {
    const ACTIONS: [&str; 9] = [
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_LOG",
        "SCMP_ACT_NOTIFY",
        "SCMP_ACT_TRACE",
        "SCMP_ACT_TRAP",
    ];
    const OPERATORS: [&str; 7] = [
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_LE",
        "SCMP_CMP_LT",
        "SCMP_CMP_MASKED_EQ",
        "SCMP_CMP_NE",
    ];
    const FLAGS: [&str; 4] = [
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    ];
    fn parse<T: serde::de::DeserializeOwned>(name: &str) -> Option<T> {
        serde_json::from_value(name.into()).ok()
    }
    let compiles = |name: &str| {
        let arg = serde_json::json!({ "index": 0, "value": 1, "op": name });
        serde_json::from_value(arg).is_ok_and(|arg: LinuxSeccompArg| condition(&arg).is_ok())
    };
    let operators: Vec<&str> = OPERATORS.into_iter().filter(|name| compiles(name)).collect();
    let known_actions: Vec<&str> =
        ACTIONS.into_iter().filter(|name| parse(name).is_some_and(|known| action(known, None).is_ok())).collect();
    let filter = ScmpFilterContext::new(ScmpAction::Allow);
    let has = |architecture| filter.as_ref().is_ok_and(|filter| filter.is_arch_present(architecture).is_ok());
    let architectures = ARCHITECTURES.iter().filter(|(_, architecture)| has(*architecture)).map(|(name, _)| name);
    let flag = |name: &&str| parse::<LinuxSeccompFilterFlag>(name);
    let known_flags: Vec<&str> = FLAGS.into_iter().filter(|name| flag(name).is_some()).collect();
    let supported = |name: &&str| flag(name).is_some_and(|known| sys::takes_seccomp_flags(flags(&[known], true)));
    let supported_flags: Vec<&str> = known_flags.iter().copied().filter(supported).collect();
    serde_json::json!({
        "enabled": true,
        "actions": known_actions,
        "operators": operators,
        "archs": architectures.collect::<Vec<_>>(),
        "knownFlags": known_flags,
        "supportedFlags": supported_flags,
    })
}
