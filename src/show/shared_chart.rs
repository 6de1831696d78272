//! One chart for the background runs of a lab: runs that wait for each other are compared while they train.

use super::curves::Curve;
use crate::error::lock;
use std::sync::{Arc, Mutex};

/// The background runs of a lab whose views are open, and those that ended meanwhile, in the order of their cells. The
/// last view that is open draws the curves of all of them. When every view is closed, the next run begins a new chart.
#[derive(Clone, Default)]
pub(crate) struct SharedChart(Arc<Mutex<Vec<Member>>>);

struct Member {
    curve: Curve,
    /// Asks the view to draw, at once or when it is due; `None` once it is closed.
    redraw: Option<Box<dyn Fn(bool) + Send>>,
}

/// What a view has to draw.
pub(super) enum Drawing {
    Curves(Vec<Curve>),
    /// Nothing, because the view of the run of this name draws.
    Elsewhere(String),
}

/// A view's place among the others. Dropping it closes the view.
pub(super) struct Place {
    chart: SharedChart,
    index: usize,
    open: bool,
}

impl SharedChart {
    /// Adds a view. From now on it draws, and those before it do not.
    pub(super) fn join(&self, curve: Curve, redraw: impl Fn(bool) + Send + 'static) -> Place {
        let mut members = lock(&self.0);
        if drawing(&members).is_none() {
            members.clear();
        }
        let before = drawing(&members);
        members.push(Member { curve, redraw: Some(Box::new(redraw)) });
        ask(&members, before, true);
        Place { chart: self.clone(), index: members.len() - 1, open: true }
    }
}

impl Place {
    /// Replaces the curve of this view's run.
    pub(super) fn update(&self, curve: Curve, at_once: bool) {
        let mut members = lock(&self.chart.0);
        members[self.index].curve = curve;
        ask(&members, drawing(&members).filter(|&other| other != self.index), at_once);
    }

    pub(super) fn drawing(&self) -> Drawing {
        what(&lock(&self.chart.0), self.index)
    }

    /// Closes the view, and returns what it draws at last.
    pub(super) fn leave(mut self) -> Drawing {
        self.close()
    }

    fn close(&mut self) -> Drawing {
        self.open = false;
        let mut members = lock(&self.chart.0);
        members[self.index].redraw = None;
        ask(&members, drawing(&members), true);
        what(&members, self.index)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Once closed, its index may belong to a view of the next chart.
        if self.open {
            self.close();
        }
    }
}

/// The index of the view that draws.
fn drawing(members: &[Member]) -> Option<usize> {
    members.iter().rposition(|member| member.redraw.is_some())
}

fn ask(members: &[Member], view: Option<usize>, at_once: bool) {
    if let Some(redraw) = view.and_then(|view| members[view].redraw.as_ref()) {
        redraw(at_once);
    }
}

fn what(members: &[Member], index: usize) -> Drawing {
    match drawing(members).filter(|&view| view != index) {
        Some(view) => Drawing::Elsewhere(members[view].curve.history.name.clone()),
        None => Drawing::Curves(members.iter().map(|member| member.curve.clone()).collect()),
    }
}
