//! The memory policy of a container's processes.
//!
//! Source: OCI runtime spec 1.3, config-linux.md "Memory policy"; set_mempolicy(2).

use oci_spec::runtime::{LinuxMemoryPolicy, MemoryPolicyFlagType, MemoryPolicyModeType};

use super::numbers::{Mask, numbers};
use crate::error::{Result, bail};

/// The modes of a memory policy, by their names in the spec and by the kernel's numbers (uapi/linux/mempolicy.h).
const MODES: [(MemoryPolicyModeType, i32); 7] = [
    (MemoryPolicyModeType::MpolBind, 2),
    (MemoryPolicyModeType::MpolDefault, 0),
    (MemoryPolicyModeType::MpolInterleave, 3),
    (MemoryPolicyModeType::MpolLocal, 4),
    (MemoryPolicyModeType::MpolPreferred, 1),
    (MemoryPolicyModeType::MpolPreferredMany, 5),
    (MemoryPolicyModeType::MpolWeightedInterleave, 6),
];

const MODE_FLAGS: [(MemoryPolicyFlagType, i32); 3] = [
    (MemoryPolicyFlagType::MpolFNumaBalancing, 1 << 13),
    (MemoryPolicyFlagType::MpolFRelativeNodes, 1 << 14),
    (MemoryPolicyFlagType::MpolFStaticNodes, 1 << 15),
];

/// What a memory policy may say, for the features document (features-linux.md, "MemoryPolicy").
pub(crate) fn features() -> serde_json::Value {
    serde_json::json!({
        "modes": MODES.map(|(mode, _)| mode.to_string()),
        "flags": MODE_FLAGS.map(|(flag, _)| flag.to_string()),
    })
}

/// set_mempolicy(2)'s mode and nodes.
pub(super) fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<(i32, Mask)> {
    use MemoryPolicyModeType as M;
    const FIELD: &str = "linux.memoryPolicy.nodes";
    let nodes = policy.nodes().as_ref().map_or(Ok(None), |list| numbers(list, FIELD))?;
    let mode = policy.mode();
    match (mode, &nodes) {
        (M::MpolDefault | M::MpolLocal, Some(_)) => bail!(InvalidArgument, "{FIELD}: {mode} takes none"),
        // Without nodes it means those of the CPU that the process runs on.
        (M::MpolDefault | M::MpolLocal | M::MpolPreferred, _) | (_, Some(_)) => {}
        (_, None) => bail!(InvalidArgument, "{FIELD}: {mode} needs at least one"),
    }
    let number = MODES.iter().find(|(known, _)| *known == mode).map_or(0, |(_, number)| *number);
    let flags = policy.flags().iter().flatten();
    let flags = flags.filter_map(|flag| MODE_FLAGS.iter().find(|(known, _)| known == flag)).map(|(_, bit)| bit);
    Ok((flags.fold(number, |all, bit| all | bit), nodes.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(value: Value) -> Result<(i32, Mask)> {
        memory_policy(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn a_memory_policy_has_the_nodes_that_its_mode_takes() {
        let flags = json!({"mode": "MPOL_BIND", "nodes": "0,2", "flags": ["MPOL_F_STATIC_NODES"]});
        assert_eq!(policy(flags).unwrap(), (0x8002, vec![5].into()));
        assert_eq!(policy(json!({"mode": "MPOL_PREFERRED"})).unwrap(), (1, vec![].into()));
        for wrong in [json!({"mode": "MPOL_BIND"}), json!({"mode": "MPOL_LOCAL", "nodes": "0"})] {
            let error = policy(wrong).unwrap_err();
            assert!(error.to_string().starts_with("linux.memoryPolicy.nodes"), "{error}");
        }
        assert_eq!(MODES.len(), features()["modes"].as_array().unwrap().len());
    }
}
