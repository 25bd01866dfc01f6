//! A plain picture of the readings: a dot for each run, sizes from left to right.

use std::fmt::Write;

use super::offload::Subject;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const MARGIN: f64 = 56.0;

/// Draws seconds until all pods are Ready over the number of pods.
#[allow(clippy::cast_precision_loss)] // a handful of sizes
pub(super) fn draw(points: &[(usize, Subject, f64)]) -> String {
    let mut sizes: Vec<usize> = points.iter().map(|(pods, ..)| *pods).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let top = points.iter().map(|(.., seconds)| *seconds).fold(1.0, f64::max) * 1.1;
    let step = (WIDTH - 2.0 * MARGIN) / sizes.len().max(1) as f64;
    let y = |seconds: f64| HEIGHT - MARGIN - seconds / top * (HEIGHT - 2.0 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"14\">Seconds until all pods of a Deployment are Ready</text>\n\
         <line x1=\"{MARGIN}\" y1=\"{0}\" x2=\"{1}\" y2=\"{0}\" stroke=\"black\"/>\n",
        HEIGHT - MARGIN,
        WIDTH - MARGIN
    );
    for part in 0..=4 {
        let seconds = top * f64::from(part) / 4.0;
        let _ = writeln!(
            out,
            "<text x=\"{0}\" y=\"{1}\" text-anchor=\"end\">{seconds:.0}</text><line x1=\"{MARGIN}\" y1=\"{1}\" x2=\"{2}\" y2=\"{1}\" stroke=\"#ddd\"/>",
            MARGIN - 6.0,
            y(seconds),
            WIDTH - MARGIN
        );
    }
    for (place, pods) in sizes.iter().enumerate() {
        let centre = MARGIN + step * (place as f64 + 0.5);
        let _ = writeln!(
            out,
            "<text x=\"{centre}\" y=\"{}\" text-anchor=\"middle\">{pods} pods</text>",
            HEIGHT - MARGIN + 20.0
        );
        for (subject, colour, shift) in [(Subject::Vanilla, "#888", -14.0), (Subject::Ours, "#0a6", 14.0)] {
            for (.., seconds) in points.iter().filter(|(size, who, _)| size == pods && *who == subject) {
                let _ = writeln!(
                    out,
                    "<circle cx=\"{}\" cy=\"{}\" r=\"5\" fill=\"{colour}\"/>",
                    centre + shift,
                    y(*seconds)
                );
            }
        }
    }
    let _ = writeln!(
        out,
        "<circle cx=\"{0}\" cy=\"40\" r=\"5\" fill=\"#888\"/><text x=\"{1}\" y=\"44\">straight in the lower cluster</text>\
         <circle cx=\"{2}\" cy=\"40\" r=\"5\" fill=\"#0a6\"/><text x=\"{3}\" y=\"44\">through tensile</text>\n</svg>",
        MARGIN + 4.0,
        MARGIN + 14.0,
        MARGIN + 204.0,
        MARGIN + 214.0
    );
    out
}
