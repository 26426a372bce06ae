//! A compact SVG writer: just the marks these plots need, with escaping and fixed decimals.

use std::fmt::Write;

use super::super::escape::escaped;

/// The width of every drawing.
pub(super) const WIDTH: f64 = 420.0;
/// Around a drawing in a file of its own.
const MARGIN: f64 = 16.0;

/// Scoped under `.karat-plot`, so that an inlined drawing colours nothing else on its page. Print
/// is light.
const STYLE: &str = "\
.karat-plot{--ink:#1f2328;--soft:#59636e;--grid:#d8dde3;--paper:#fff;--base:#8a9099;--lora:#0072b2;--full:#c25700;--other:#00805e;--other2:#a3497f;--other3:#8f7a00;--other4:#6a51c7;--other5:#a8352f}\
@media screen and (prefers-color-scheme:dark){.karat-plot{--ink:#e6edf3;--soft:#9aa4af;--grid:#363d46;--paper:#15181c;--base:#7f8894;--lora:#56b4e9;--full:#e69f00;--other:#2fc39a;--other2:#dd94bd;--other3:#e8dd55;--other4:#a99bf0;--other5:#f08a80}}\
.karat-plot text{font:13px system-ui,-apple-system,'Segoe UI','Noto Sans','Noto Sans CJK SC','PingFang SC','Microsoft YaHei',sans-serif;fill:var(--ink)}\
.karat-plot .soft{fill:var(--soft)}.karat-plot .head{font-weight:600}\
.karat-plot .grid{stroke:var(--grid);stroke-width:1}\
.karat-plot .ground{fill:var(--paper)}.karat-plot .halo{stroke:var(--paper);stroke-width:4;opacity:.7}\
.karat-plot .whisker{stroke:var(--ink);stroke-width:1.5}\
.karat-plot .line{fill:none;stroke-width:2.25;stroke-linejoin:round;stroke-linecap:round}\
.karat-plot .strip{stroke-width:1.25}.karat-plot .thin{stroke-width:1.25;opacity:.55}.karat-plot .guide{stroke-width:1;stroke-dasharray:3 3}\
.karat-plot .frontier{fill:none;stroke:var(--soft);stroke-width:1.25;stroke-dasharray:4 4}\
.karat-plot .hollow{fill:var(--paper);stroke-width:2.25}\
.karat-plot .c-base{--c:var(--base)}.karat-plot .c-lora{--c:var(--lora)}.karat-plot .c-full{--c:var(--full)}\
.karat-plot .c-other{--c:var(--other)}.karat-plot .c-other2{--c:var(--other2)}.karat-plot .c-other3{--c:var(--other3)}.karat-plot .c-other4{--c:var(--other4)}.karat-plot .c-other5{--c:var(--other5)}\
.karat-plot .fill{fill:var(--c)}.karat-plot .stroke{stroke:var(--c)}";

/// A drawing under construction; `y` grows downwards.
pub(super) struct Svg {
    body: String,
    label: String,
}

/// Where a text's anchor is.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    /// `label` is what a screen reader says.
    pub fn new(label: &str) -> Self {
        Svg { body: String::new(), label: escaped(label) }
    }

    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let _ = writeln!(
            self.body,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" class=\"{class}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    pub fn polyline(&mut self, points: &[(f64, f64)], class: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(self.body, "<polyline points=\"{}\" class=\"{class}\"/>", points.join(" "));
    }

    pub fn circle(&mut self, center: (f64, f64), radius: f64, class: &str) {
        let _ = writeln!(
            self.body,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius:.1}\" class=\"{class}\"/>",
            center.0, center.1
        );
    }

    pub fn rect(&mut self, at: (f64, f64), size: (f64, f64), class: &str) {
        let _ = writeln!(
            self.body,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\" class=\"{class}\"/>",
            at.0, at.1, size.0, size.1
        );
    }

    pub fn text(&mut self, at: (f64, f64), anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = writeln!(
            self.body,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{}</text>",
            at.0,
            at.1,
            escaped(text)
        );
    }

    /// Moves what `draw` draws down by `y`.
    pub fn shifted(&mut self, y: f64, draw: impl FnOnce(&mut Svg)) {
        let _ = writeln!(self.body, "<g transform=\"translate(0 {y:.1})\">");
        draw(self);
        self.body.push_str("</g>\n");
    }

    /// A drawing for a page that has the same light or dark ground.
    pub fn inline(self, height: f64) -> String {
        self.document((0.0, 0.0, WIDTH, height), "")
    }

    /// A drawing in a file of its own: it brings its ground, because a dark reader may look at it
    /// on a light page.
    pub fn file(self, height: f64) -> String {
        let (width, height) = (WIDTH + 2.0 * MARGIN, height + 2.0 * MARGIN);
        let ground = format!(
            "<rect x=\"-{MARGIN:.0}\" y=\"-{MARGIN:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" rx=\"8\" class=\"ground\"/>\n"
        );
        self.document((-MARGIN, -MARGIN, width, height), &ground)
    }

    fn document(self, (x, y, width, height): (f64, f64, f64, f64), ground: &str) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"karat-plot\" role=\"img\" aria-label=\"{}\" \
             viewBox=\"{x:.0} {y:.0} {width:.0} {height:.0}\">\n<style>{STYLE}</style>\n{ground}{}</svg>\n",
            self.label, self.body
        )
    }
}

/// How wide a text of 13 is, about: a full em for East Asian characters, a good half for others.
pub(super) fn text_width(text: &str) -> f64 {
    text.chars().map(|c| if c as u32 >= 0x2e80 { 13.0 } else { 7.6 }).sum()
}

/// `text`, shortened to `width` with an ellipsis.
pub(super) fn fitted(text: &str, width: f64) -> String {
    if text_width(text) <= width {
        return text.to_string();
    }
    let mut short = String::new();
    for c in text.chars() {
        if text_width(&short) + text_width(c.encode_utf8(&mut [0; 4])) + 13.0 > width {
            break;
        }
        short.push(c);
    }
    short + "…"
}

/// More points than these cannot be told apart: neighbours are averaged.
const POINTS: usize = 300;

/// Means of neighbouring points, so that no drawing has more than [`POINTS`].
pub(super) fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(POINTS).max(1);
    let mean = |c: &[(f64, f64)]| {
        let n = c.len() as f64;
        (c.iter().map(|p| p.0).sum::<f64>() / n, c.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(size).map(mean).collect()
}
