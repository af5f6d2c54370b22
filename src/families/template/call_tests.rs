use half::bf16;

use super::*;
use crate::families::template::loaded::Template;
use crate::families::template::space::WIDEST;

fn template() -> Template {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates/add_rmsnorm.toml");
    Template::load(path).expect("is right")
}

/// Arguments of `rows` rows of 8, in memory that 32 bytes divide.
struct Data {
    memory: Vec<bf16>,
    start: usize,
}

impl Data {
    fn new() -> Self {
        let memory = vec![bf16::ONE; 400];
        let start = memory.as_ptr().align_offset(WIDEST as usize);
        Self { memory, start }
    }

    /// The arguments; one of them in another's place.
    fn checked(&mut self, other: Option<(usize, Arg<'_>)>) -> Result<Call> {
        let template = template();
        let d = template.description();
        let spec = d.spec([("dtype", "bf16"), ("hidden", "8")]).expect("is right");
        let (x, rest) = self.memory[self.start..].split_at_mut(64);
        let (residual, rest) = rest.split_at_mut(64);
        let (weight, y) = rest.split_at_mut(64);
        let mut args = vec![
            Arg::host(&x[..24], &[3, 8]).expect("fits"),
            Arg::host_mut(&mut residual[..24], &[3, 8]).expect("fits"),
            Arg::host(&weight[..8], &[8]).expect("fits"),
            Arg::host_mut(&mut y[..24], &[3, 8]).expect("fits"),
            3u32.into(),
            1e-6f32.into(),
        ];
        if let Some((at, arg)) = other {
            args[at] = arg;
        }
        Call::new(d, &spec.values, template.aligned(), &args, Location::Host)
    }

    fn error(&mut self, at: usize, arg: Arg<'_>) -> String {
        self.checked(Some((at, arg))).err().expect("is refused").to_string()
    }
}

#[test]
fn a_call_knows_its_class_bucket_and_geometry() {
    let call = Data::new().checked(None).expect("is right");
    assert_eq!(call.class, 0o5555, "four tensors at multiples of 32");
    assert_eq!(call.bucket.tokens(), 4);
    let template = template();
    let d = template.description();
    let mut values = *call.values();
    d.assign(&mut values, &[256, 1]);
    let geometry = geometry(d, &values, 0).expect("has one").expect("has blocks");
    assert_eq!((geometry.grid, geometry.block), ([3, 1, 1], [256, 1, 1]));
    assert_eq!(call.cells[4], 3);
    assert_eq!(call.cells[5], u64::from(1e-6f32.to_bits()));
}

#[test]
fn alignments_are_told_apart_up_to_the_widest_access() {
    for (address, aligned) in [(0, 32), (64, 32), (48, 16), (24, 8), (4, 4), (6, 2), (7, 1)] {
        assert_eq!(alignment(address), aligned, "{address}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let (f, b) = ([0f32; 24], [bf16::ONE; 25]);
    let hint = "hint: it is 'x' of add_rmsnorm's [args]";
    let x = |shape: &[u64]| Arg::host(&b[..shape.iter().product::<u64>() as usize], shape).expect("fits");
    let mut data = Data::new();
    assert_eq!(data.error(0, Arg::host(&f, &[3, 8]).expect("fits")), "x: is f32, and should be bf16");
    assert_eq!(
        data.error(0, x(&[3, 7])),
        format!("x: has the shape [3, 7], and should have [rows, hidden] = [3, 8]\n{hint}")
    );
    assert_eq!(
        data.error(0, x(&[24])),
        format!("x: has the shape [24], and should have [rows, hidden] = [3, 8]\n{hint}")
    );
    assert_eq!(data.error(1, x(&[3, 8])), "residual: is inout, and was given to be read only");
    assert_eq!(data.error(3, x(&[3, 8])), "y: is out, and was given to be read only");
    assert_eq!(data.error(0, 3u32.into()), "x: is a number, and should be a tensor");
    assert_eq!(data.error(4, x(&[1])), "rows: is a tensor, and should be a number of type u32");
    assert_eq!(data.error(4, 1.5f32.into()), "rows: 1.5 is given, and should be an integer of type u32");
    assert_eq!(data.error(4, (-1i32).into()), "rows: -1 is outside of u32");
    assert_eq!(data.error(4, (1i64 << 32).into()), "rows: 4294967296 is outside of u32");
    assert_eq!(data.error(4, usize::MAX.into()), "rows: 9223372036854775807 is outside of u32");
    assert!(data.checked(Some((5, 1u32.into()))).is_ok(), "a float may be given as an integer");
}

#[test]
#[allow(unsafe_code)]
fn addresses_are_checked_as_far_as_they_can_be() {
    let mut data = Data::new();
    let raw = |address: usize| {
        // SAFETY: nothing is launched.
        unsafe { Arg::from_raw(address as *mut c_void, Element::Bf16, &[3, 8]) }.expect("has few dimensions")
    };
    assert_eq!(data.error(0, raw(0)), "x: has no memory");
    assert_eq!(data.error(0, raw(4097)), "x: is not aligned to its elements");
    // SAFETY: as above.
    let many = unsafe { Arg::from_raw(std::ptr::null_mut(), Element::U8, &[1; 9]) };
    assert_eq!(many.err().expect("too many").to_string(), "shape: has 9 dimensions, 8 at most are served");
    let template = template();
    let spec = template.description().spec([("dtype", "bf16"), ("hidden", "8")]).expect("is right");
    let none = Call::new(template.description(), &spec.values, &[], &[], Location::Host);
    assert_eq!(none.err().expect("too few").to_string(), "args: 0 are given, and add_rmsnorm has 6");
    let elsewhere = Location::Cuda { context: 1, stream: 2 };
    let host = [0f32; 1];
    let args: Vec<_> =
        (0..6).map(|i| if i < 4 { Arg::host(&host, &[1]).expect("fits") } else { 1u32.into() }).collect();
    let spec = template.description().spec([("dtype", "f32"), ("hidden", "1")]).expect("is right");
    assert_eq!(
        Call::new(template.description(), &spec.values, &[], &args, elsewhere).err().expect("elsewhere").to_string(),
        "x: is not on the engine's device, or was borrowed for another stream"
    );
}

#[test]
fn a_shape_has_the_elements_of_its_slice() {
    let error = Arg::host(&[1u8, 2], &[3]).err().expect("is refused").to_string();
    assert_eq!(error, "shape: [3] does not have as many elements as the slice, 2");
    assert!(Arg::host(&[1u8, 2], &[u64::MAX, 2]).is_err());
}

#[test]
fn a_geometry_that_no_device_has_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = include_str!("../../../tests/data/templates/scale.toml");
    let geometry_of = |grid: &str, block: &str, n: i64| {
        let text = text.replace("ceil_div(n, threads * vec)", grid).replace("\"threads\"]", &format!("{block}]"));
        std::fs::write(folder.path().join("scale.toml"), text).expect("written");
        std::fs::copy(
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates/scale.cu"),
            folder.path().join("scale.cu"),
        )
        .expect("copied");
        let template = Template::load(folder.path().join("scale.toml")).expect("is right");
        let d = template.description();
        let mut values = [0; MOST];
        (values[1], values[2], values[6]) = (256, 1, n);
        geometry(d, &values, 0).map_err(|e| e.to_string())
    };
    assert_eq!(geometry_of("n", "\"threads\"", 0), Ok(None));
    assert_eq!(
        geometry_of("n - 1", "\"threads\"", 0).expect_err("negative"),
        "scale: [launch] grid: 'n - 1' is -1 for these arguments, and may be 0 to 2147483647"
    );
    assert_eq!(
        geometry_of("256 / n", "\"threads\"", 0).expect_err("no value"),
        "scale: [launch] grid: '256 / n' divides by zero for these arguments"
    );
    assert_eq!(
        geometry_of("n", "\"threads\", \"8\"", 1).expect_err("too large"),
        "scale: [launch] block: a block has 2048 threads, and may have 1 to 1024"
    );
    assert_eq!(
        geometry_of("1\", \"n", "\"threads\"", 70000).expect_err("too large"),
        "scale: [launch] grid: 'n' is 70000 for these arguments, and may be 0 to 65535"
    );
    assert_eq!(
        geometry_of("1", "\"n\"", 0).expect_err("none"),
        "scale: [launch] block: a block has 0 threads, and may have 1 to 1024"
    );
}
