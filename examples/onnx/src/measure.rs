//! What a student's answers say about it.

use std::time::Duration;

/// A student's answer to one picture.
pub struct Answer {
    pub class: usize,
    pub probability: f64,
    /// How much likelier the class is than the next one.
    pub margin: f64,
    /// Of the network alone, for this one picture.
    pub time: Duration,
}

impl Answer {
    pub fn new(probabilities: &[f32], time: Duration) -> Self {
        let mut order: Vec<usize> = (0..probabilities.len()).collect();
        order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
        let [probability, next] =
            [0, 1].map(|place| order.get(place).map_or(0.0, |&class| f64::from(probabilities[class])));
        Self { class: order[0], probability, margin: probability - next, time }
    }
}

/// The times in milliseconds within which half and 95 % of the pictures were done: `p50 1.20 ms, p95 1.42 ms`.
pub fn percentiles(times: impl Iterator<Item = Duration>) -> String {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    let last = times.len().saturating_sub(1) as f64;
    let [half, most] =
        [0.5, 0.95].map(|share| times.get((share * last).round() as usize).map_or(0, Duration::as_nanos));
    format!("p50 {:.2} ms, p95 {:.2} ms", half as f64 / 1e6, most as f64 / 1e6)
}

/// The difference of two accuracies on the same pictures and its 95 % interval, in percentage points, from whether the
/// first and the second were right. Only pictures on which one of them is right and the other one wrong say something
/// about the difference. Half a picture is added to each of the four cells, so that the interval is not empty where
/// both are always right or wrong together: Agresti and Min, "Simple improved confidence intervals for comparing
/// matched proportions" (2005).
pub fn difference(right: &[(bool, bool)]) -> (f64, [f64; 2]) {
    let count = |wanted| right.iter().filter(|pair| **pair == wanted).count() as f64;
    let (lost, won) = (count((true, false)), count((false, true)));
    let pictures = right.len() as f64 + 2.0;
    let (centre, apart) = ((won - lost) / pictures, lost + won + 1.0);
    let reach = 1.96 * (apart - (won - lost).powi(2) / pictures).sqrt() / pictures;
    (100.0 * (won - lost) / right.len().max(1) as f64, [centre - reach, centre + reach].map(|bound| 100.0 * bound))
}

/// Largest resident memory of this process in megabytes, where Linux tells it.
pub fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<f64>().ok()? / 1024.0)
}
