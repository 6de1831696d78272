//! One request of JSON to a server in the room or on this machine.

use crate::store::download::first_line;
use serde_json::Value;
use std::time::Duration;
use ureq::tls::{RootCerts, TlsConfig};

/// An answer may take this long, connecting included.
const PATIENCE: Duration = Duration::from_secs(10);
/// Answers are not longer.
const MOST_BYTES: u64 = 1 << 20;

/// Sends JSON and returns the status of the answer with its JSON; `Null` if the answer is something else. It asks the
/// server itself, whatever proxy leads to the internet.
///
/// # Errors
/// Why there was no answer, in a few words.
pub(crate) fn post(url: &str, body: &Value) -> Result<(u16, Value), String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(3)))
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .proxy(None)
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        .build()
        .into();
    let sent = agent.post(url).header("Content-Type", "application/json").send(body.to_string());
    let answer = sent.map_err(first_line)?;
    let status = answer.status().as_u16();
    let text = answer.into_body().into_with_config().limit(MOST_BYTES).read_to_string().map_err(first_line)?;
    Ok((status, serde_json::from_str(&text).unwrap_or_default()))
}
