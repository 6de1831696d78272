//! Random augmentation: what is drawn, and the images that it makes, by PyTorch's own operations.

use super::super::augment::{View, seen};
use super::super::sampling::{Purpose, generator};
use super::*;
use crate::tests::oracle::ask;
use kdlab::data::{Augment, Views};
use serde_json::json;

const SIZE: (i64, i64) = (24, 32);

fn noise(images: i64) -> Tensor {
    tch::manual_seed(1);
    Tensor::randint(256, [images, 3, SIZE.0, SIZE.1], (Kind::Uint8, Device::Cpu))
}

/// Views of `augment`, by item.
fn drawn(augment: &Augment, count: u64) -> Vec<View> {
    (0..count).map(|item| augment.draw(SIZE, &mut generator(Purpose::FreshView, 0, 1, item))).collect()
}

fn everything() -> Augment {
    Augment { flip: true, shift: 5, crop: Some(0.2), original: false, cutout: 9, jitter: 0.8, hue: 0.4, mixup: None }
}

/// Crops by `F.interpolate`, shifts by `F.pad`, colours by torchvision: each alone, and all together.
#[test]
fn views_are_the_images_that_pytorch_makes() {
    let plain = Augment::default;
    let alone = [
        Augment { flip: true, ..plain() },
        Augment { shift: 40, ..plain() },
        Augment { crop: Some(0.05), ..plain() },
        Augment { cutout: 11, ..plain() },
        Augment { jitter: 0.9, ..plain() },
        Augment { hue: 0.5, ..plain() },
        everything(),
    ];
    let views: Vec<View> = alone.iter().flat_map(|augment| drawn(augment, 8)).chain([View::default()]).collect();
    let images = noise(views.len() as i64);
    let settings = views.iter().map(|v| {
        json!({"mirrored": v.mirrored, "shift": v.shift, "crop": v.crop, "cutout": v.cutout, "colour": v.colour,
            "hue": v.hue})
    });
    let torch = ask("views", &[("images", &images)], json!({"views": settings.collect::<Vec<_>>()}));
    let ours = seen(&images, &views).unwrap();
    assert_eq!((ours.size(), ours.kind()), (images.size(), Kind::Uint8));
    let gaps = (ours.to_kind(Kind::Double) - torch.get("views")).abs().amax([1i64, 2, 3], false);
    // Rounded to whole values, of numbers that are computed in f32.
    for (gap, view) in Vec::<f64>::try_from(gaps).unwrap().into_iter().zip(&views) {
        assert!(gap < 0.5 + 1e-3, "{view:?} differs by {gap}");
    }
    assert!(ours.get(-1).equal(&images.get(-1)), "the image as it is");
}

#[test]
fn what_is_drawn_lies_in_its_range_and_reaches_its_ends() {
    let augment = everything();
    let views = drawn(&augment, 4000);
    let share = |of: &dyn Fn(&View) -> bool| views.iter().filter(|v| of(v)).count() as f64 / views.len() as f64;
    assert!((share(&|v| v.mirrored) - 0.5).abs() < 0.03);
    assert!(views.iter().all(|v| v.shift.iter().all(|s| s.abs() <= 5)));
    assert!(share(&|v| v.shift == [5, -5]) > 0.0);
    assert!(share(&|v| v.hue > 0.39) > 0.0 && share(&|v| v.hue < -0.39) > 0.0);
    let box_of = |v: &View| v.crop.unwrap();
    let area = |[left, top, right, bottom]: [i64; 4]| ((right - left) * (bottom - top)) as f64 / (24.0 * 32.0);
    for view in &views {
        let [left, top, right, bottom] = box_of(view);
        assert!(0 <= left && left < right && right <= 32 && 0 <= top && top < bottom && bottom <= 24);
        let ratio = (right - left) as f64 / (bottom - top) as f64;
        // Sides are rounded to whole pixels.
        assert!(area(box_of(view)) > 0.17 && (0.68..1.5).contains(&ratio), "{view:?}");
        let [left, top, right, bottom] = view.cutout.unwrap();
        assert!(0 <= left && left < right && right <= 32 && right - left <= 9 && bottom <= 24 && bottom - top <= 9);
        assert!(view.colour.unwrap().iter().all(|f| (0.2..=1.8).contains(f)) && view.hue.abs() <= 0.4);
    }
    // Uniform in area: torchvision draws again where a crop sticks out.
    assert!(share(&|v| area(box_of(v)) < 0.25) > 0.03 && share(&|v| area(box_of(v)) > 0.9) > 0.01);
    assert!(share(&|v| v.cutout.unwrap()[2] - v.cutout.unwrap()[0] < 9) > 0.1, "a square may stick out");
    // One augmentation does not change what the others draw.
    let fewer = drawn(&Augment { crop: None, jitter: 0.0, ..everything() }, 50);
    assert!(
        fewer
            .iter()
            .zip(&views)
            .all(|(a, b)| (a.mirrored, a.shift, a.cutout, a.hue) == (b.mirrored, b.shift, b.cutout, b.hue))
    );
}

#[test]
fn a_batch_is_mixed_by_a_share_of_the_beta_distribution() {
    let mixings = |alpha: f64| {
        let augment = Augment { mixup: Some(alpha), ..Augment::default() };
        (0..2000).map(move |step| augment.mixing(8, 0, 1, step).unwrap().unwrap())
    };
    // The mean of max(x, 1 - x): 1/2 + 1/pi for the arcsine distribution, 3/4 for the uniform one.
    for (alpha, mean) in [(0.5, 0.5 + 1.0 / std::f64::consts::PI), (1.0, 0.75), (100.0, 0.528)] {
        let shares: Vec<f64> = mixings(alpha).map(|mixing| mixing.share).collect();
        assert!(shares.iter().all(|share| (0.5..=1.0).contains(share)));
        let found = shares.iter().sum::<f64>() / 2000.0;
        assert!((found - mean).abs() < 0.01, "Beta({alpha}, {alpha}): {found}, not {mean}");
    }
    let mut orders = HashSet::new();
    for mixing in mixings(0.2) {
        let mut partners = mixing.partners.clone();
        partners.sort_unstable();
        assert_eq!(partners, (0..8).collect::<Vec<_>>());
        orders.insert(mixing.partners);
    }
    assert!(orders.len() > 1900);
    let images = noise(8);
    let mixing = mixings(1.0).next().unwrap();
    let of = |t: &Tensor| t.to_kind(Kind::Double);
    let others = of(&images).index_select(0, &Tensor::from_slice(&mixing.partners));
    let mixed = of(&images) * mixing.share + others * (1.0 - mixing.share);
    let gap = (of(&mixing.apply(&images).unwrap()) - mixed).abs().max().double_value(&[]);
    assert!(gap < 0.5 + 1e-3, "{gap}");
}

#[test]
fn what_is_drawn_depends_on_seed_epoch_and_sample_alone() {
    let (images, augment) = (noise(4), everything());
    let seen = |samples: &[i64], seed, epoch| augment.apply(&images, samples, seed, epoch).unwrap();
    let first = seen(&[0, 1, 2, 3], 0, 1);
    assert!(first.equal(&seen(&[0, 1, 2, 3], 0, 1)));
    for (seed, epoch) in [(1, 1), (0, 2)] {
        let other = seen(&[0, 1, 2, 3], seed, epoch);
        assert!((0..4).all(|i| !first.get(i).equal(&other.get(i))));
    }
    // Whatever the batch is.
    let one = augment.apply(&images.narrow(0, 2, 1), &[2], 0, 1).unwrap();
    assert!(one.get(0).equal(&first.get(2)));

    let views = |count, seed| Views::drawn(&augment, count, seed).unwrap();
    let all: Vec<i64> = (0..4).collect();
    let four = views(4, 7).apply(&images, &all).unwrap();
    assert!(four.equal(&views(9, 7).apply(&images, &all).unwrap()), "more views leave the first ones as they are");
    assert!(four.get(0).equal(&images.get(0)), "view 0 is the image as it is");
    assert!(!four.equal(&views(4, 8).apply(&images, &all).unwrap()));
    let same = views(4, 7).apply(&images.narrow(0, 0, 1).repeat([4, 1, 1, 1]), &[3, 3, 2, 3]).unwrap();
    assert!(same.get(0).equal(&same.get(1)) && !same.get(0).equal(&same.get(2)));
    let keys: HashSet<String> = [(4, 7), (9, 7), (4, 8)].map(|(count, seed)| views(count, seed).key()).into();
    assert_eq!(keys.len(), 3);
    assert_eq!(views(4, 7).to_string(), "4 views: flip, shift 5, crop 0.2, cutout 9, jitter 0.8, hue 0.4");
    // Files of logits and checkpoints have this in their keys.
    assert_eq!(
        Views::cross(2).unwrap().key(),
        "Views { flip: true, shifts: [(0, 0), (2, 0), (-2, 0), (0, 2), (0, -2)] }"
    );
}

#[test]
fn values_out_of_range_are_refused() {
    let plain = Augment::default;
    for (augment, says) in [
        (Augment { shift: -1, ..plain() }, "shifts of -1 pixels: take 0 to 64"),
        (Augment { shift: 65, ..plain() }, "shifts of 65 pixels"),
        (Augment { crop: Some(0.0), ..plain() }, "a share of the image in (0, 1], got 0; try 0.5"),
        (Augment { crop: Some(1.5), ..plain() }, "got 1.5"),
        (Augment { crop: Some(f64::NAN), ..plain() }, "got NaN"),
        (Augment { cutout: 24, ..plain() }, "cutout must be less than the image's 24 pixels, got 24; try 6"),
        (Augment { cutout: -1, ..plain() }, "got -1"),
        (Augment { jitter: 1.0, ..plain() }, "colour jitter must be in [0, 1), got 1; try 0.3"),
        (Augment { jitter: f64::NAN, ..plain() }, "got NaN"),
        (Augment { hue: 0.6, ..plain() }, "hue must turn by 0 to 0.5 of the colour circle, got 0.6; try 0.1"),
        (Augment { hue: f64::NAN, ..plain() }, "got NaN"),
        (Augment { mixup: Some(0.0), ..plain() }, "mixup must be 0.01 to 100, got 0; try 0.2, or None to mix nothing"),
        (Augment { mixup: Some(f64::NAN), ..plain() }, "got NaN"),
        (Augment { mixup: Some(-1.0), ..plain() }, "got -1"),
    ] {
        let text = message(augment.check(SIZE));
        assert!(text.contains(says), "{text}");
        let views = Views::drawn(&augment, 4, 0).and_then(|views| views.apply(&noise(1), &[1]));
        assert!(views.is_err());
    }
    assert!(everything().check(SIZE).is_ok());
    let refused = |augment: Augment, count| message(Views::drawn(&augment, count, 0));
    assert!(refused(everything(), 1).contains("1 views were asked for: draw 2 to 1000"));
    assert!(refused(everything(), 1001).contains("draw 2 to 1000"));
    assert!(refused(plain(), 4).contains("set a field of Augment"));
    let mixed = refused(Augment { mixup: Some(0.2), ..everything() }, 4);
    assert!(mixed.contains("no numbered view can show it") && mixed.contains("taught_by"), "{mixed}");
    let floats = message(everything().apply(&noise(1).to_kind(Kind::Float), &[0], 0, 0));
    assert!(floats.contains("augmentation takes images u8 [B, 3, H, W], not Float [1, 3, 24, 32]"), "{floats}");
}
