//! The shipped policies, embedded: `builtin:openai` and the others.

/// Their names, the default first.
pub const BUILTIN_NAMES: [&str; 5] = ["openai", "openai-residency", "azure-openai", "anthropic", "lockdown"];

/// The text of a shipped policy by its name.
pub fn builtin(name: &str) -> Option<&'static str> {
    Some(match name {
        "openai" => include_str!("../../policies/openai.yaml"),
        "openai-residency" => include_str!("../../policies/openai-residency.yaml"),
        "azure-openai" => include_str!("../../policies/azure-openai.yaml"),
        "anthropic" => include_str!("../../policies/anthropic.yaml"),
        "lockdown" => include_str!("../../policies/lockdown.yaml"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_policy_parses_without_a_warning_has_tests_and_is_named_after_its_file() {
        for name in BUILTIN_NAMES {
            let text = builtin(name).unwrap();
            let parsed = crate::policy::parse(text, &format!("builtin:{name}")).unwrap();
            assert_eq!(parsed.warnings, [], "{name}");
            assert_eq!(parsed.policy.name.as_str(), name);
            assert!(!parsed.policy.tests.is_empty(), "{name}");
            assert_eq!(text.lines().take_while(|line| line.starts_with('#')).count(), 3, "{name}: three lines at its head");
        }
        assert_eq!(builtin("nonsense"), None);
    }
}
