//! Resize and normalise.

use super::*;

fn plain(size: i64) -> Transform {
    Transform { size, mean: [0.0; 3], std: [1.0; 3] }
}

/// One image u8 `[1, 3, side, side]` with these values in every channel.
fn image(side: i64, values: &[u8]) -> Tensor {
    Tensor::from_slice(values).view([1, 1, side, side]).repeat([1, 3, 1, 1])
}

fn close(got: &Tensor, expected: &[f32]) {
    let got = Vec::<f32>::try_from(got.flatten(0, -1)).unwrap();
    assert_eq!(got.len(), expected.len());
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() < 1e-5, "value {i}: {g}, expected {e}");
    }
}

#[test]
fn enlarging_is_bilinear_with_half_pixel_centres() -> Done {
    let x = plain(4).apply(&image(2, &[0, 80, 160, 240]), Device::Cpu)?;
    assert_eq!((x.size(), x.kind()), (vec![1, 3, 4, 4], Kind::Float));
    // Output centres fall at -0.25, 0.25, 0.75 and 1.25 of the input: weights 0, 1/4, 3/4, 1.
    #[rustfmt::skip]
    let expected = [
          0.,  20.,  60.,  80.,
         40.,  60., 100., 120.,
        120., 140., 180., 200.,
        160., 180., 220., 240.,
    ];
    close(&x.select(1, 2), &expected.map(|v| v / 255.0));
    Ok(())
}

#[test]
fn shrinking_is_anti_aliased() -> Done {
    let row = [0, 70, 140, 210];
    let x = plain(2).apply(&image(4, &row.repeat(4)), Device::Cpu)?;
    // A triangle as wide as two output pixels: weights 3/7, 3/7, 1/7. Plain bilinear would give 35 and 175.
    close(&x.select(1, 0), &[50.0, 160.0, 50.0, 160.0].map(|v| v / 255.0));
    Ok(())
}

#[test]
fn normalising_is_per_channel_and_exact_in_size() -> Done {
    let images = image(2, &[0, 51, 102, 255]);
    let before = images.copy();
    let transform = Transform { size: 2, mean: [0.0, 0.5, 0.2], std: [1.0, 0.5, 2.0] };
    let x = transform.apply(&images, Device::Cpu)?;
    close(&x.select(1, 0), &[0.0, 0.2, 0.4, 1.0]);
    close(&x.select(1, 1), &[-1.0, -0.6, -0.2, 1.0]);
    close(&x.select(1, 2), &[-0.1, 0.0, 0.1, 0.4]);
    assert!(images.equal(&before), "the stored bytes stay as they are");
    let black = Transform::imagenet(2).apply(&image(2, &[0; 4]), Device::Cpu)?;
    close(&black.select(1, 0), &[-0.485 / 0.229; 4]);
    Ok(())
}

#[test]
fn transforms_refuse_what_they_cannot_take() {
    let images = image(2, &[0; 4]);
    let says = |t: &Transform, x: &Tensor, parts: &[&str]| assert_says(&message(t.apply(x, Device::Cpu)), parts);
    says(&plain(2), &images.to_kind(Kind::Float), &["u8", "Float"]);
    says(&plain(2), &images.select(0, 0), &["[B, 3, H, W]", "[3, 2, 2]"]);
    says(&plain(2), &images.narrow(1, 0, 1), &["[1, 1, 2, 2]"]);
    says(&plain(0), &images, &["transform size 0"]);
    says(&Transform { std: [1.0, 0.0, 1.0], ..plain(2) }, &images, &["std 0"]);
}
