//! Boxes that were found at one place after another, joined again: across families, directions and whatever else they differ in
//! alone. What is joined covers exactly what its boxes cover.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::net::{Family, Protocol};
use crate::base::packet::Direction;
use crate::judge::compare::dimension::{Dimension, Place, Units};
use crate::judge::compare::divide::{Bounds, Pair, alike};
use crate::judge::compare::values::Values;
use crate::judge::packet::Packet;
use crate::ruleset::field::ct_state;

/// A box of the packet space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// At which hooks and interfaces.
    pub places: Vec<Place>,
    /// Which values.
    pub bounds: Bounds,
}

impl Part {
    /// Whether the packet lies in the box.
    pub fn holds(&self, packet: &Packet, units: &Units) -> bool {
        // The original port of a packet of which nothing was translated is its port, and bounded as that.
        let untranslated = Dimension::Translated.read(packet, units) != Some(1);
        let is_free = |dimension: Dimension| dimension == Dimension::OriginalPort && untranslated;
        let within = |(dimension, values): &(Dimension, Values)| {
            is_free(*dimension) || dimension.read(packet, units).is_none_or(|value| values.contains(value))
        };
        self.places.iter().any(|place| place.holds(packet)) && self.bounds.iter().all(within)
    }

    /// The values of a dimension; `None` when it is not bounded.
    pub fn bound(&self, dimension: Dimension) -> Option<&Values> {
        self.bounds.iter().find(|(other, _)| *other == dimension).map(|(_, values)| values)
    }

    /// The values that a dimension can have in it.
    pub fn values(&self, dimension: Dimension) -> Values {
        let place = self.places.first().copied().unwrap_or(Place::Wire(Direction::Out));
        self.bound(dimension).cloned().unwrap_or_else(|| place.domain(dimension))
    }

    /// Whether it has packets of this family.
    pub fn has(&self, family: Family) -> bool {
        self.bound(Dimension::Family).is_none_or(|families| families.contains(family.nfproto().into()))
    }
}

/// Boxes in which the same becomes of packets.
#[derive(Debug, Clone)]
pub struct Group {
    /// What becomes of them.
    pub pair: Pair,
    /// Where they are; they do not overlap.
    pub parts: Vec<Part>,
    /// The least box around them.
    pub hull: Part,
    /// What there is in it besides them.
    pub fit: Fit,
}

/// What there is in the least box around the boxes of a change, besides them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fit {
    /// Nothing: it is the change.
    Exact,
    /// Packets that answer to what is under way, and are allowed before and after like everything that does.
    Answered,
    /// Packets that are allowed before and after, so that the box tells what is allowed with the change, or was without it.
    Filled,
    /// Other packets too: only the parts tell.
    Loose,
}

/// The boxes that were found, by what becomes of them and where they are.
pub type Found = BTreeMap<Pair, BTreeMap<Place, Vec<Bounds>>>;

/// Adds what was found at a place.
pub fn add(found: &mut Found, place: Place, boxes: Vec<(Pair, Bounds)>) {
    for (pair, bounds) in boxes {
        found.entry(pair).or_default().entry(place).or_default().push(bounds);
    }
}

/// Joins the boxes of each place, and those of what goes out and passes where they are the same. `is_filled` tells whether all of a
/// box is allowed on the side of the pair that allows.
pub fn finish(found: Found, mut is_filled: impl FnMut(Pair, Place, &Bounds) -> bool) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut forms = Forms::default();
    for (pair, places) in found {
        let mut at: BTreeMap<Place, (Vec<Bounds>, Bounds, Fit)> = BTreeMap::new();
        for (place, boxes) in places {
            let Form { boxes, hull, is_answered } = forms.of(boxes);
            let fit = match boxes.as_slice() {
                [_] => Fit::Exact,
                _ if !is_filled(pair, place, &hull) => Fit::Loose,
                _ if is_answered => Fit::Answered,
                _ => Fit::Filled,
            };
            at.insert(place, (boxes, hull, fit));
        }
        let ways = [Direction::Out, Direction::Forward].map(Place::Wire);
        if let [Some(out), Some(forward)] = ways.map(|place| at.get(&place))
            && out.2 != Fit::Loose
            && is_around(&out.1, &forward.1)
            && (out.1 == forward.1 && forward.2 != Fit::Loose || is_filled(pair, ways[1], &out.1))
        {
            // What passes is told with what goes out: where it is less, the rest is allowed anyway.
            let hull = Part { places: ways.to_vec(), bounds: out.1.clone() };
            let mut parts: Vec<Part> = Vec::new();
            for (place, boxes) in [(ways[0], &out.0), (ways[1], &forward.0)] {
                for bounds in boxes {
                    match parts.iter_mut().find(|part| part.bounds == *bounds) {
                        Some(part) => part.places.push(place),
                        None => parts.push(Part { places: vec![place], bounds: bounds.clone() }),
                    }
                }
            }
            let fit = if parts.len() == 1 { Fit::Exact } else { Fit::Filled };
            groups.push(Group { pair, parts, hull, fit });
            at.retain(|place, _| !ways.contains(place));
        }
        for (place, (boxes, hull, fit)) in at {
            let part = |bounds: Bounds| Part { places: vec![place], bounds };
            groups.push(Group { pair, parts: boxes.into_iter().map(part).collect(), hull: part(hull), fit });
        }
    }
    groups
}

/// The boxes of one place joined, and what there is to say of them.
#[derive(Debug, Clone)]
struct Form {
    boxes: Vec<Bounds>,
    /// The least box around them.
    hull: Bounds,
    /// Whether they are one where packets that answer do not count.
    is_answered: bool,
}

/// What was joined already. Rules for thousands of destinations differ in nothing else, so their boxes are joined once, with a
/// stand-in for the addresses.
///
/// INVARIANT: joining asks of values only whether they are equal, and joins none but those of one dimension. Where all boxes that are
/// bounded in a dimension have the same values there, these come out as they went in, whatever they are; nothing depends on addresses.
#[derive(Debug, Default)]
struct Forms(BTreeMap<Vec<Bounds>, Form>);

impl Forms {
    /// These boxes, joined.
    fn of(&mut self, mut boxes: Vec<Bounds>) -> Form {
        let meant = Dimension::ADDRESSES.map(|dimension| {
            let mut values = boxes.iter().flatten().filter(|bound| bound.0 == dimension).map(|bound| &bound.1);
            let first = values.next()?;
            values.all(|other| other == first).then(|| first.clone())
        });
        let stand_in = Values::one(0);
        let put = |boxes: &mut [Bounds], value: &dyn Fn(usize) -> Option<Values>| {
            for (dimension, values) in boxes.iter_mut().flatten() {
                if let Some(value) = Dimension::ADDRESSES.iter().position(|address| address == dimension).and_then(value) {
                    *values = value;
                }
            }
        };
        put(&mut boxes, &|at| meant[at].as_ref().map(|_| stand_in.clone()));
        let mut form = match self.0.get(&boxes) {
            Some(form) => form.clone(),
            None => self.0.entry(boxes.clone()).or_insert(Form::new(boxes)).clone(),
        };
        let value = |at: usize| meant[at].clone();
        put(&mut form.boxes, &value);
        put(std::slice::from_mut(&mut form.hull), &value);
        form
    }
}

impl Form {
    fn new(boxes: Vec<Bounds>) -> Form {
        let boxes = joined(boxes);
        Form { hull: hull(&boxes), is_answered: is_one_but_for_answers(&boxes), boxes }
    }
}

/// Whether these boxes are one where packets that are only related to a connection do not count.
fn is_one_but_for_answers(boxes: &[Bounds]) -> bool {
    let whole = Dimension::State.domain();
    let without = |bounds: &Bounds| -> Option<Bounds> {
        let states = bounds.iter().find(|bound| bound.0 == Dimension::State).map_or(&whole, |bound| &bound.1);
        let states = states.without(&Values::one(ct_state::RELATED));
        let mut bounds: Bounds = bounds.iter().filter(|bound| bound.0 != Dimension::State).cloned().collect();
        bounds.insert(bounds.partition_point(|bound| bound.0 < Dimension::State), (Dimension::State, states.clone()));
        (!states.is_empty()).then_some(bounds)
    };
    joined(boxes.iter().filter_map(without).collect()).len() == 1
}

/// The least box around boxes.
fn hull(boxes: &[Bounds]) -> Bounds {
    let around = Dimension::ALL.into_iter().filter_map(|dimension| {
        let mut values: Vec<&Values> = Vec::new();
        for bounds in boxes.iter().filter(|bounds| has_values(bounds, dimension)) {
            // One that is not bounded leaves nothing bounded.
            values.push(&bounds.iter().find(|bound| bound.0 == dimension)?.1);
        }
        let values = Values::of(&values);
        (!values.is_empty() && values != dimension.domain()).then_some((dimension, values))
    });
    around.collect()
}

/// Whether a box lies in another.
fn is_around(outer: &Bounds, inner: &Bounds) -> bool {
    outer.iter().all(|(dimension, values)| inner.iter().any(|(other, bound)| other == dimension && values.covers(bound)))
}

/// Whether packets of a box have values in a dimension.
fn has_values(bounds: &Bounds, dimension: Dimension) -> bool {
    let has = |dimension: Dimension, wanted: &[u128]| {
        let bound = bounds.iter().find(|bound| bound.0 == dimension);
        bound.is_none_or(|(_, values)| wanted.iter().any(|value| values.contains(*value)))
    };
    let family = |family: Family| has(Dimension::Family, &[family.nfproto().into()]);
    let protocol = |protocols: &[Protocol]| protocols.iter().any(|protocol| has(Dimension::Protocol, &[protocol.0.into()]));
    let tracked = || has(Dimension::State, &[ct_state::NEW, ct_state::ESTABLISHED, ct_state::RELATED]);
    let ported = || protocol(&[Protocol::TCP, Protocol::UDP]);
    match dimension {
        Dimension::Family | Dimension::Protocol | Dimension::State | Dimension::Socket => true,
        Dimension::Translated | Dimension::Sender => tracked(),
        Dimension::IcmpType => family(Family::V4) && protocol(&[Protocol::ICMP]),
        Dimension::Icmpv6Type => family(Family::V6) && protocol(&[Protocol::ICMPV6]),
        Dimension::HopLimit | Dimension::SourceV6 | Dimension::DestinationV6 => family(Family::V6),
        Dimension::SourceV4 | Dimension::DestinationV4 => family(Family::V4),
        Dimension::DestinationPort | Dimension::SourcePort => ported(),
        Dimension::OriginalPort => tracked() && ported() && has(Dimension::Translated, &[1]),
        Dimension::TcpFlags => protocol(&[Protocol::TCP]),
        Dimension::Unit | Dimension::Group | Dimension::User => has(Dimension::Socket, &[1]),
    }
}

/// Joins boxes of one place until none can be joined.
fn joined(mut boxes: Vec<Bounds>) -> Vec<Bounds> {
    // Each round joins something or is the last; this many are enough for anything that people write.
    for _ in 0..8 {
        let before = boxes.len();
        if before < 2 {
            break;
        }
        boxes = families(boxes);
        for (dimension, without, depending) in DEPENDING {
            boxes = depended(dimension, Values::one(without), depending, boxes);
        }
        let bounded: BTreeSet<Dimension> = boxes.iter().flatten().map(|(dimension, _)| *dimension).collect();
        for dimension in bounded {
            boxes = along(dimension, boxes);
        }
        if boxes.len() == before {
            break;
        }
    }
    boxes.sort();
    boxes
}

/// Joins boxes that differ along one dimension only.
fn along(dimension: Dimension, boxes: Vec<Bounds>) -> Vec<Bounds> {
    let apart = boxes.into_iter().map(|mut bounds| {
        let at = bounds.iter().position(|bound| bound.0 == dimension);
        let values = at.map(|at| bounds.remove(at).1);
        (bounds, values)
    });
    let whole = dimension.domain();
    let joined = alike(apart.collect()).into_iter().map(|(mut bounds, values)| {
        // Where one of them is not bounded at all, they are not together.
        let values = values.iter().map(Option::as_ref).collect::<Option<Vec<_>>>().map(|values| Values::of(&values));
        if let Some(values) = values.filter(|values| *values != whole) {
            let at = bounds.partition_point(|bound| bound.0 < dimension);
            bounds.insert(at, (dimension, values));
        }
        bounds
    });
    joined.collect()
}

/// Dimensions of which others depend: at this value packets have none in those, so that bounds of those do not bound them.
const DEPENDING: [(Dimension, u128, &[Dimension]); 3] = [
    (Dimension::Socket, 0, &[Dimension::User, Dimension::Group, Dimension::Unit]),
    (Dimension::Translated, 0, &[Dimension::OriginalPort]),
    (Dimension::State, ct_state::INVALID, &[Dimension::Translated, Dimension::Sender, Dimension::OriginalPort]),
];

/// Joins a box whose packets have no value in depending dimensions with one that is bounded in those, where they differ in nothing
/// else.
fn depended(dimension: Dimension, without: Values, depending: &[Dimension], boxes: Vec<Bounds>) -> Vec<Bounds> {
    let of = |bounds: &Bounds| bounds.iter().find(|bound| bound.0 == dimension).map(|bound| bound.1.clone());
    let bounded = |bounds: &Bounds| bounds.iter().any(|(other, _)| depending.contains(other));
    let rest = |bounds: &Bounds| -> Bounds {
        bounds.iter().filter(|(other, _)| *other != dimension && !depending.contains(other)).cloned().collect()
    };
    let is_alone = |bounds: &Bounds| of(bounds).as_ref() == Some(&without) && !bounded(bounds);
    if !boxes.iter().any(is_alone) {
        return boxes;
    }
    let (alone, mut others): (Vec<Bounds>, Vec<Bounds>) = boxes.into_iter().partition(is_alone);
    let mut numbers: BTreeMap<Bounds, usize> = BTreeMap::new();
    for (number, bounds) in others.iter().enumerate().filter(|(_, bounds)| bounded(bounds)) {
        numbers.entry(rest(bounds)).or_insert(number);
    }
    for bounds in alone {
        let joined = numbers.get(&rest(&bounds)).and_then(|number| others.get_mut(*number)).and_then(|other| {
            let at = other.iter().position(|bound| bound.0 == dimension)?;
            Some((other, at))
        });
        match joined {
            Some((other, at)) => {
                let both = other.get(at).map(|bound| bound.1.union(&without)).unwrap_or_default();
                let whole = both == dimension.domain();
                other.retain(|bound| bound.0 != dimension);
                if !whole {
                    other.insert(at, (dimension, both));
                }
            }
            None => others.push(bounds),
        }
    }
    others
}

/// Joins a box of IPv4 with one of IPv6 where they differ in nothing but what only one of the families has.
fn families(boxes: Vec<Bounds>) -> Vec<Bounds> {
    let mut rest = Vec::new();
    let mut pairs: BTreeMap<Bounds, [Vec<Bounds>; 2]> = BTreeMap::new();
    for bounds in boxes {
        let of = Family::BOTH.iter().position(|family| bounds.contains(&(Dimension::Family, Values::one(family.nfproto().into()))));
        match of {
            Some(of) => {
                if let Some(of_family) = pairs.entry(shared(&bounds)).or_default().get_mut(of) {
                    of_family.push(bounds);
                }
            }
            None => rest.push(bounds),
        }
    }
    for [v4, v6] in pairs.into_values() {
        let mut v6 = v6.into_iter();
        for four in v4 {
            rest.push(match v6.next() {
                Some(six) => both(four, &six),
                None => four,
            });
        }
        rest.extend(v6);
    }
    rest
}

/// Dimensions in which only packets of one family have a value.
fn is_of_one_family(dimension: Dimension) -> bool {
    matches!(
        dimension,
        Dimension::SourceV4
            | Dimension::DestinationV4
            | Dimension::IcmpType
            | Dimension::SourceV6
            | Dimension::DestinationV6
            | Dimension::Icmpv6Type
            | Dimension::HopLimit
    )
}

/// The bounds that both families can share.
fn shared(bounds: &Bounds) -> Bounds {
    let icmp = Values::points([Protocol::ICMP, Protocol::ICMPV6].map(|protocol| protocol.0.into()));
    let shared = bounds.iter().filter(|(dimension, _)| *dimension != Dimension::Family && !is_of_one_family(*dimension));
    shared
        .map(|(dimension, values)| match dimension {
            Dimension::Protocol => (*dimension, values.without(&icmp)),
            _ => (*dimension, values.clone()),
        })
        .collect()
}

/// The box of two boxes with the same shared bounds.
fn both(four: Bounds, six: &Bounds) -> Bounds {
    let mut joined: Bounds = Vec::new();
    for dimension in Dimension::ALL.into_iter().filter(|dimension| *dimension != Dimension::Family) {
        let of = |bounds: &Bounds| bounds.iter().find(|bound| bound.0 == dimension).map(|bound| bound.1.clone());
        let values = match (of(&four), of(six)) {
            (Some(four), Some(six)) => four.union(&six),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => continue,
        };
        joined.push((dimension, values));
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Boxes that differ in little, so that many can be joined and many have the same addresses.
    fn boxes() -> impl Strategy<Value = Vec<Bounds>> {
        let states = [ct_state::NEW, ct_state::RELATED, ct_state::INVALID];
        let bounds = (0..4usize, 0..4usize, 0..3usize, 0..4u128, 0..4u128).prop_map(move |(family, state, socket, four, six)| {
            let one = |dimension: Dimension, value: Option<u128>| value.map(|value| (dimension, Values::one(value)));
            let bounds = [
                one(Dimension::Family, Family::BOTH.get(family).map(|family| family.nfproto().into())),
                one(Dimension::State, states.get(state).copied()),
                one(Dimension::Socket, [0, 1].get(socket).copied()),
                one(Dimension::DestinationV4, (four > 0).then_some(four.min(2))),
                one(Dimension::DestinationV6, (six > 0).then_some(six.min(2))),
            ];
            bounds.into_iter().flatten().collect()
        });
        vec(bounds, 1..6)
    }

    proptest! {
        #[test]
        fn what_is_joined_by_stand_ins_is_what_is_joined_without(all in vec(boxes(), 1..8)) {
            let mut forms = Forms::default();
            for boxes in all {
                let (form, alone) = (forms.of(boxes.clone()), Form::new(boxes));
                prop_assert_eq!(form.boxes, alone.boxes);
                prop_assert_eq!(form.hull, alone.hull);
                prop_assert_eq!(form.is_answered, alone.is_answered);
            }
        }
    }
}
