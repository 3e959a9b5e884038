//! Boxes that were found at one place after another, joined again: across families, directions and whatever else they differ in
//! alone. What is joined covers exactly what its boxes cover.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::base::net::{Family, Protocol};
use crate::base::packet::Direction;
use crate::judge::compare::dimension::{Dimension, NO_PORT, Place, Units};
use crate::judge::compare::divide::{Bounds, Pair};
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
        let untranslated = Dimension::Translated.read(packet, units) != Some(1) && packet.payload.protocol().has_ports();
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
    /// Where they are: one or more.
    pub sections: Vec<Section>,
}

/// The boxes of a change that are told together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// The boxes; they do not overlap.
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
    /// No packets that begin a connection; of others, some that are allowed before and after.
    Opening,
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

/// Joins the boxes of each place, and those of what goes out and passes where people say both in one breath. `is_filled` tells
/// whether all of a box is allowed on the side of the pair that allows.
pub fn finish(found: Found, mut is_filled: impl FnMut(Pair, Place, &Bounds) -> bool) -> Vec<Group> {
    let mut groups = Vec::new();
    for (pair, places) in found {
        let mut at: BTreeMap<Place, Section> = BTreeMap::new();
        for (place, boxes) in places {
            let boxes = joined(boxes);
            let hull = hull(&boxes);
            let fit = match boxes.as_slice() {
                [_] => Fit::Exact,
                // Ports of one protocol and types of another make no sentence.
                _ if !is_of_one_kind(&boxes, &hull) || !is_filled(pair, place, &hull) => Fit::Loose,
                _ if opening(&boxes) == [without_state(&hull)] => Fit::Opening,
                _ => Fit::Filled,
            };
            let part = |bounds: Bounds| Part { places: vec![place], bounds };
            at.insert(place, Section { parts: boxes.into_iter().map(part).collect(), hull: part(hull), fit });
        }
        let [out, forward] = [Direction::Out, Direction::Forward].map(Place::Wire);
        if let (Some(ours), Some(theirs)) = (at.get(&out), at.get(&forward))
            && is_alike(&ours.hull.bounds, &theirs.hull.bounds)
        {
            let told_at_once = ours.fit != Fit::Loose
                && is_around(&ours.hull.bounds, &theirs.hull.bounds)
                && (ours.hull.bounds == theirs.hull.bounds && theirs.fit != Fit::Loose || is_filled(pair, forward, &ours.hull.bounds));
            let sections = if told_at_once { vec![at_once(ours, theirs)] } else { vec![ours.clone(), theirs.clone()] };
            groups.push(Group { pair, sections });
            at.retain(|place, _| ![out, forward].contains(place));
        }
        groups.extend(at.into_values().map(|section| Group { pair, sections: vec![section] }));
    }
    groups
}

/// What goes out and what passes, where the latter is the same or less and the rest of it is allowed anyway.
fn at_once(out: &Section, forward: &Section) -> Section {
    let places = [&out.hull, &forward.hull].into_iter().flat_map(|hull| &hull.places).copied().collect();
    let mut parts = out.parts.clone();
    for part in &forward.parts {
        match parts.iter_mut().find(|other| other.bounds == part.bounds) {
            Some(other) => other.places.extend(&part.places),
            None => parts.push(part.clone()),
        }
    }
    let fit = match (parts.len(), out.hull.bounds == forward.hull.bounds) {
        (1, _) => Fit::Exact,
        (_, true) => out.fit.max(forward.fit),
        (_, false) => Fit::Filled,
    };
    Section { parts, hull: Part { places, bounds: out.hull.bounds.clone() }, fit }
}

/// The boxes of packets that begin a connection, without saying so.
fn opening(boxes: &[Bounds]) -> Vec<Bounds> {
    let begins =
        |bounds: &&Bounds| bounds.iter().find(|bound| bound.0 == Dimension::State).is_none_or(|(_, states)| states.contains(ct_state::NEW));
    joined(boxes.iter().filter(begins).map(without_state).collect())
}

fn without_state(bounds: &Bounds) -> Bounds {
    bounds.iter().filter(|(dimension, _)| *dimension != Dimension::State).cloned().collect()
}

/// Whether boxes are bounded to the same protocols, or the box around them to none.
fn is_of_one_kind(boxes: &[Bounds], hull: &Bounds) -> bool {
    let protocols = |bounds: &Bounds| bounds.iter().find(|bound| bound.0 == Dimension::Protocol).map(|bound| bound.1.clone());
    protocols(hull).is_none() || boxes.windows(2).all(|two| two.iter().map(protocols).collect::<BTreeSet<_>>().len() == 1)
}

/// The least box around all parts of a change.
pub fn around(sections: &[Section]) -> Part {
    let parts = || sections.iter().flat_map(|section| &section.parts);
    let mut places: Vec<Place> = parts().flat_map(|part| &part.places).copied().collect();
    places.sort();
    places.dedup();
    Part { places, bounds: hull(&parts().map(|part| part.bounds.clone()).collect::<Vec<_>>()) }
}

/// Whether two boxes differ in nothing but how tracking and sockets see their packets.
fn is_alike(one: &Bounds, other: &Bounds) -> bool {
    let seen = |dimension: Dimension| {
        use Dimension::{OriginalPort, Sender, Socket, State, Translated};
        matches!(dimension, State | Translated | Sender | OriginalPort | Socket)
    };
    let rest = |bounds: &Bounds| bounds.iter().filter(|(dimension, _)| !seen(*dimension)).cloned().collect::<Bounds>();
    rest(one) == rest(other)
}

/// The least box around boxes.
fn hull(boxes: &[Bounds]) -> Bounds {
    let around = Dimension::ALL.into_iter().filter_map(|dimension| {
        let mut values: Vec<&Values> = Vec::new();
        for bounds in boxes.iter().filter(|bounds| has_values(bounds, dimension)) {
            // One that is not bounded leaves nothing bounded.
            values.push(&bounds.iter().find(|bound| bound.0 == dimension)?.1);
        }
        let values = Values::new(values.into_iter().flat_map(Values::intervals).copied());
        let ported = dimension == Dimension::OriginalPort && boxes.iter().all(is_ported);
        let whole = if ported { Values::new([(0, NO_PORT - 1)]) } else { dimension.domain() };
        (!values.is_empty() && values != whole).then_some((dimension, values))
    });
    around.collect()
}

/// Whether a box lies in another.
fn is_around(outer: &Bounds, inner: &Bounds) -> bool {
    outer.iter().all(|(dimension, values)| inner.iter().any(|(other, bound)| other == dimension && values.covers(bound)))
}

/// Whether all packets of a box have ports.
fn is_ported(bounds: &Bounds) -> bool {
    bounds.iter().any(|(dimension, values)| *dimension == Dimension::Protocol && Dimension::ported().covers(values))
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
        Dimension::OriginalPort => tracked() && (!is_ported(bounds) || has(Dimension::Translated, &[1])),
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
    let mut rests: Vec<(Bounds, Option<Vec<Values>>)> = Vec::new();
    let mut numbers: HashMap<Bounds, usize> = HashMap::new();
    for mut bounds in boxes {
        let at = bounds.iter().position(|bound| bound.0 == dimension);
        let values = at.map(|at| bounds.remove(at).1);
        match numbers.get(&bounds).and_then(|number| rests.get_mut(*number)) {
            Some((_, known)) => match (known.as_mut(), values) {
                (Some(known), Some(values)) => known.push(values),
                // One of them is not bounded at all.
                _ => *known = None,
            },
            None => {
                numbers.insert(bounds.clone(), rests.len());
                rests.push((bounds, values.map(|values| vec![values])));
            }
        }
    }
    let whole = dimension.domain();
    let bounded = rests.into_iter().map(|(mut bounds, values)| {
        let values = values.map(|values| Values::new(values.iter().flat_map(Values::intervals).copied()));
        let is_whole = |values: &Values| match dimension {
            Dimension::OriginalPort if is_ported(&bounds) => values.covers(&Values::new([(0, NO_PORT - 1)])),
            _ => *values == whole,
        };
        if let Some(values) = values.filter(|values| !is_whole(values)) {
            let at = bounds.partition_point(|bound| bound.0 < dimension);
            bounds.insert(at, (dimension, values));
        }
        bounds
    });
    bounded.collect()
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
    // Packets without ports have an original port whether they were translated or not.
    let fits = |bounds: &Bounds| dimension != Dimension::Translated || is_ported(bounds);
    let bounded = |bounds: &Bounds| fits(bounds) && bounds.iter().any(|(other, _)| depending.contains(other));
    let rest = |bounds: &Bounds| -> Bounds {
        bounds.iter().filter(|(other, _)| *other != dimension && !depending.contains(other)).cloned().collect()
    };
    let (alone, mut others): (Vec<Bounds>, Vec<Bounds>) =
        boxes.into_iter().partition(|bounds| of(bounds).as_ref() == Some(&without) && fits(bounds) && !bounded(bounds));
    let mut numbers: HashMap<Bounds, usize> = HashMap::new();
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
