//! Log lines: for people on a terminal, or as JSON for a collector.
//!
//! What the levels mean: *error* a person must act; *warn* something is wrong and tensile copes; *info* a change of
//! state an operator would ask about; *debug* one line for each decision; *trace* one line for each request.

use std::io;

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, filter::ParseError, layer::SubscriberExt, util::SubscriberInitExt};

/// The log flags of a service; flatten it into the service's own arguments.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// What to log: a level (error, warn, info, debug, trace) or directives such as info,tensile_virtual_node=debug
    #[arg(long, env = "TENSILE_LOG", default_value = "info", value_name = "FILTER")]
    pub log_level: String,

    /// How a log line looks
    #[arg(long, env = "TENSILE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Human)]
    pub log_format: LogFormat,
}

/// How a log line looks.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text, coloured on a terminal.
    Human,
    /// One JSON object on a line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not understood.
    #[error(
        "--log-level {given:?} is not a log filter: {source}; give a level (error, warn, info, debug, trace) or \
             directives such as info,tensile_virtual_node=debug"
    )]
    Filter {
        /// What was given.
        given: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// A subscriber is already there: `init` was called twice.
    #[error("logging is set up already: {0}")]
    AlreadySet(#[from] tracing_subscriber::util::TryInitError),
}

impl LogArgs {
    /// Sends log lines to stderr from here on. Call once, first thing in `main`.
    pub fn init(&self) -> Result<(), LogError> {
        let registry = tracing_subscriber::registry().with(self.filter()?);
        match self.log_format {
            LogFormat::Human => {
                let colour = io::IsTerminal::is_terminal(&io::stderr());
                registry.with(tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(colour)).try_init()?;
            }
            LogFormat::Json => {
                let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(io::stderr);
                registry.with(layer).try_init()?;
            }
        }
        Ok(())
    }

    fn filter(&self) -> Result<EnvFilter, LogError> {
        EnvFilter::builder()
            .parse(&self.log_level)
            .map_err(|source| LogError::Filter { given: self.log_level.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_bad_filter_is_refused_with_the_cure() {
        let args = LogArgs { log_level: "virtual=loud".into(), log_format: LogFormat::Json };
        let error = args.filter().unwrap_err().to_string();
        assert!(error.contains("virtual=loud") && error.contains("give a level"), "{error}");
    }

    #[test]
    fn a_level_and_directives_are_accepted() {
        for level in ["debug", "info,tensile_chassis=trace", "off"] {
            LogArgs { log_level: level.into(), log_format: LogFormat::Human }.filter().unwrap();
        }
    }
}
