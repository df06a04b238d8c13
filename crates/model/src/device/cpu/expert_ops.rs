//! The experts' ops with their shapes checked.

use super::checks::{check, check_ids, check_routing};
use super::memory::{slice, slice_mut};
use super::{Floats, FloatsMut, Ids, IdsMut, experts};
use crate::Result;
use crate::device::{Routing, Write};

pub(super) fn route(
    routing: Routing,
    logits: Floats<'_>,
    probabilities: FloatsMut<'_>,
    picks: IdsMut<'_>,
    weights: FloatsMut<'_>,
) -> Result<()> {
    let n = check_routing("route", routing, picks.len())?;
    check(
        "route",
        [("logits", logits.len(), n * routing.n_experts), ("weights", weights.len(), picks.len())],
    )?;
    check("route", [("probabilities", probabilities.len(), logits.len())])?;
    let (logits, probabilities) = (slice(logits), slice_mut(probabilities));
    experts::route(routing, logits, probabilities, slice_mut(picks), slice_mut(weights));
    Ok(())
}

pub(super) fn route_backward(
    routing: Routing,
    probabilities: Floats<'_>,
    picks: Ids<'_>,
    d_weights: Floats<'_>,
    write: Write,
    d_logits: FloatsMut<'_>,
) -> Result<()> {
    let op = "route_backward";
    let n = check_routing(op, routing, picks.len())?;
    check(op, [("probabilities", probabilities.len(), n * routing.n_experts)])?;
    check(
        op,
        [("d_weights", d_weights.len(), picks.len()), ("d_logits", d_logits.len(), probabilities.len())],
    )?;
    check_ids(op, "expert", slice(picks), routing.n_experts)?;
    let (probabilities, picks) = (slice(probabilities), slice(picks));
    experts::route_backward(routing, probabilities, picks, slice(d_weights), write, slice_mut(d_logits));
    Ok(())
}

pub(super) fn group_picks(
    routing: Routing,
    picks: Ids<'_>,
    rows: IdsMut<'_>,
    places: IdsMut<'_>,
    counts: &mut [usize],
) -> Result<()> {
    let op = "group_picks";
    check_routing(op, routing, picks.len())?;
    check(op, [("rows", rows.len(), picks.len()), ("places", places.len(), picks.len())])?;
    check(op, [("counts", counts.len(), routing.n_experts)])?;
    check_ids(op, "expert", slice(picks), routing.n_experts)?;
    experts::group(slice(picks), routing.n_used, slice_mut(rows), slice_mut(places), counts);
    Ok(())
}

pub(super) fn combine_experts(
    routing: Routing,
    x: Floats<'_>,
    places: Ids<'_>,
    weights: Option<Floats<'_>>,
    write: Write,
    y: FloatsMut<'_>,
) -> Result<()> {
    let op = "combine_experts";
    let n = check_routing(op, routing, places.len())?;
    let n_weights = weights.map_or(places.len(), |weights| weights.len());
    check(op, [("x", x.len(), y.len() * routing.n_used), ("weights", n_weights, places.len())])?;
    check_ids(op, "place", slice(places), places.len())?;
    let Some(cols) = y.len().checked_div(n) else { return Ok(()) };
    let (x, places) = ((slice(x), cols), (slice(places), routing.n_used));
    experts::combine(x, places, weights.map(slice), write, slice_mut(y));
    Ok(())
}

pub(super) fn combine_experts_backward(
    routing: Routing,
    x: FloatsMut<'_>,
    places: Ids<'_>,
    weights: Floats<'_>,
    d_y: Floats<'_>,
    d_weights: FloatsMut<'_>,
) -> Result<()> {
    let op = "combine_experts_backward";
    let n = check_routing(op, routing, places.len())?;
    check(op, [("x", x.len(), d_y.len() * routing.n_used), ("weights", weights.len(), places.len())])?;
    check(op, [("d_weights", d_weights.len(), places.len())])?;
    check_ids(op, "place", slice(places), places.len())?;
    let Some(cols) = d_y.len().checked_div(n) else { return Ok(()) };
    let (x, places) = ((slice_mut(x), cols), (slice(places), routing.n_used));
    experts::combine_backward(x, places, slice(weights), slice(d_y), slice_mut(d_weights));
    Ok(())
}
