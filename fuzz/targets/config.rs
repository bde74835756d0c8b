//! A configuration file: any text gives either a configuration or all that is wrong with it.
//!
//! What is accepted reads back from its effective text as the same; what is refused says where, inside the text.

use twinlog::config::{self, Report, Severity};

/// One input.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match config::parse(text, "fuzz.toml") {
        Ok(loaded) => {
            assert!(loaded.warnings.iter().all(|warning| warning.severity == Severity::Warning));
            let effective = config::show_effective(&loaded.config);
            let again = config::parse(&effective, "effective.toml");
            let again = again.unwrap_or_else(|wrong| panic!("{}\n{effective}", show(&wrong)));
            assert_eq!(again.config, loaded.config, "{effective}");
        }
        Err(diagnostics) => {
            assert!(diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error));
            assert!(!show(&diagnostics).is_empty());
            let lines = text.split('\n').count();
            for diagnostic in &diagnostics {
                assert!(!diagnostic.message.is_empty() && !diagnostic.message.contains('\n'), "{diagnostic}");
                if let Some(place) = &diagnostic.place {
                    assert!((1..=lines).contains(&place.line) && place.column >= 1, "{diagnostic}");
                }
            }
        }
    }
}

fn show(diagnostics: &[config::Diagnostic]) -> String {
    Report { diagnostics, colour: true }.to_string() + &Report { diagnostics, colour: false }.to_string()
}
