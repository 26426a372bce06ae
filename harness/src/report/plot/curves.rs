//! Training and evaluation loss, one panel a trained model, all on the same scale; the best
//! checkpoint is marked. Below each panel the learning rate and the gradient norm of its steps.

use super::super::model::{Evaluation, Model, Report, Training};
use super::super::number::{fixed, grouped};
use super::axis::{Scale, label, ticks};
use super::svg::{Anchor, Svg, WIDTH, fitted, text_width, thinned};
use super::{color_class, strips};

const HEIGHT: f64 = 250.0;
const LEFT: f64 = 44.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = HEIGHT - 42.0;
/// Right of the plot, for the names of the lines.
const RIGHT: f64 = 44.0;
/// Between the plot and what stands below it.
const BELOW: f64 = 8.0;

/// All panels, one below the other; none if nothing was trained.
pub fn training_curves(report: &Report) -> Option<String> {
    let trained: Vec<&Model> = report.models.iter().filter(|m| drawable(m).is_some()).collect();
    if trained.is_empty() {
        return None;
    }
    let mut svg = Svg::new(report.language.labels().curves);
    let mut top = 0.0;
    for model in trained {
        svg.shifted(top, |svg| draw(svg, report, model));
        top += drawable(model).map_or(0.0, height) + 2.0 * BELOW;
    }
    Some(svg.file(top - 2.0 * BELOW))
}

/// One model's panel; none if it was not trained.
pub fn curve_panel(report: &Report, model: &Model) -> Option<String> {
    let training = drawable(model)?;
    let mut svg = Svg::new(&format!("{}: {}", report.language.labels().curves, model.name));
    draw(&mut svg, report, model);
    Some(svg.inline(height(training)))
}

fn height(training: &Training) -> f64 {
    match strips::height(training) {
        0.0 => HEIGHT,
        below => HEIGHT + BELOW + below,
    }
}

/// The training of a model with at least one point to draw.
fn drawable(model: &Model) -> Option<&Training> {
    let training = model.training.as_ref()?;
    losses(training).next().map(|_| training)
}

fn losses(training: &Training) -> impl Iterator<Item = f64> {
    let steps = training.curve.iter().filter_map(|p| p.loss);
    steps.chain(training.evaluations.iter().filter_map(|e| e.loss))
}

fn draw(svg: &mut Svg, report: &Report, model: &Model) {
    let Some(training) = drawable(model) else { return };
    let l = report.language.labels();
    let color = color_class(report, &model.name);
    let x = x_scale(svg, training, l.step_axis);
    let y = y_scale(svg, report);

    svg.rect((0.0, 7.0), (11.0, 11.0), &format!("{color} fill"));
    svg.text((17.0, 17.0), Anchor::Start, "head", &fitted(&model.name, 150.0));
    svg.text((WIDTH, 17.0), Anchor::End, "soft", l.loss_axis);

    let train: Vec<(f64, f64)> =
        training.curve.iter().filter_map(|p| Some((x.at(p.step as f64), y.at(p.loss?)))).collect();
    let eval: Vec<(f64, f64)> =
        training.evaluations.iter().filter_map(|e| Some((x.at(e.step as f64), y.at(e.loss?)))).collect();
    svg.polyline(&thinned(&train), &format!("{color} stroke line thin"));
    svg.polyline(&eval, &format!("{color} stroke line"));
    if eval.len() <= 40 {
        eval.iter().for_each(|&p| svg.circle(p, 2.5, &format!("{color} fill")));
    }
    line_names(svg, train.last(), eval.last(), (l.train_line, l.eval_line));
    if let Some(Evaluation { step, loss: Some(loss) }) = training.best {
        let at = (x.at(step as f64), y.at(loss));
        svg.line((at.0, TOP), (at.0, BOTTOM), &format!("{color} stroke guide"));
        svg.circle(at, 5.0, &format!("{color} stroke hollow"));
        let text = format!("{} {} · {} {}", l.best, fixed(loss, 3), l.at_step, grouped(step as u64));
        let half = text_width(&text) / 2.0;
        let center = at.0.min(WIDTH - half).max(LEFT + half);
        svg.text((center, TOP - 7.0), Anchor::Middle, "", &text);
    }
    strips::draw(svg, training, l, color, &x, HEIGHT + BELOW, (LEFT, WIDTH - RIGHT));
}

/// Right of the plot, each at the height of its line's end; pushed apart where they would touch,
/// and kept inside.
fn line_names(svg: &mut Svg, train: Option<&(f64, f64)>, eval: Option<&(f64, f64)>, names: (&str, &str)) {
    const LINE: f64 = 15.0;
    let x = WIDTH - RIGHT + 8.0;
    let inside = |y: f64| y.clamp(TOP + 4.0, BOTTOM - 6.0);
    let (mut train_y, mut eval_y) = (train.map(|p| inside(p.1)), eval.map(|p| inside(p.1)));
    if let (Some(t), Some(e)) = (&mut train_y, &mut eval_y)
        && (*t - *e).abs() < LINE
    {
        // The pair moves as one, so that keeping one inside does not push it onto the other.
        let middle = ((*t + *e) / 2.0).clamp(TOP + 4.0 + LINE / 2.0, BOTTOM - 6.0 - LINE / 2.0);
        let down = if *t >= *e { LINE / 2.0 } else { -LINE / 2.0 };
        (*t, *e) = (middle + down, middle - down);
    }
    for (y, name, class) in [(train_y, names.0, "soft"), (eval_y, names.1, "")] {
        if let Some(y) = y {
            svg.text((x, y + 4.5), Anchor::Start, class, name);
        }
    }
}

fn x_scale(svg: &mut Svg, training: &Training, title: &str) -> Scale {
    let last = training.curve.iter().map(|p| p.step).chain(training.evaluations.iter().map(|e| e.step)).max();
    let last = last.unwrap_or(1).max(1) as f64;
    let right = WIDTH - RIGHT;
    let scale = Scale::new(0.0, last, LEFT, right);
    let (ticks, decimals) = ticks(0.0, last, 5);
    for tick in ticks.into_iter().filter(|t| *t <= last) {
        svg.line((scale.at(tick), BOTTOM), (scale.at(tick), BOTTOM + 4.0), "grid");
        svg.text((scale.at(tick), BOTTOM + 18.0), Anchor::Middle, "soft", &label(tick, decimals));
    }
    svg.text(((LEFT + right) / 2.0, BOTTOM + 35.0), Anchor::Middle, "soft", title);
    scale
}

/// The same for all panels of a report. It need not start at zero: lines, unlike bars, show change.
fn y_scale(svg: &mut Svg, report: &Report) -> Scale {
    let all = || report.models.iter().filter_map(drawable).flat_map(losses);
    let low = all().fold(f64::INFINITY, f64::min);
    let high = all().fold(f64::NEG_INFINITY, f64::max);
    let (ticks, decimals) = ticks(low, high, 4);
    let ends = (ticks.first().copied().unwrap_or(low), ticks.last().copied().unwrap_or(high));
    let scale = Scale::new(ends.0, ends.1, BOTTOM, TOP);
    for tick in ticks {
        svg.line((LEFT, scale.at(tick)), (WIDTH - RIGHT, scale.at(tick)), "grid");
        svg.text((LEFT - 7.0, scale.at(tick) + 4.5), Anchor::End, "soft", &label(tick, decimals));
    }
    scale
}
