"""One folder with every kind of broken image among good ones, predicted in one run."""

import gzip
import io
import os

import nibabel as nib
import numpy as np
import pytest
from trust.faults import AFFINE, content, ct, predict, save_ct

DAMAGED = "is truncated or damaged: copy it again"


def packed(array=None, **fields):
    """The bytes of a `.nii` file whose header is changed past every check of nibabel."""
    file = io.BytesIO()
    image = nib.Nifti1Image(ct() if array is None else array, AFFINE)
    image.to_file_map({"image": nib.FileHolder(fileobj=file)})
    raw = bytearray(file.getvalue())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.binaryblock
    return bytes(raw)


def nifti2(shape):
    header = nib.Nifti2Header()
    header.set_data_shape(shape)
    header.set_sform(AFFINE, code=1)
    return header.binaryblock + bytes(1000)


def with_value(value, dtype=np.float32):
    array = ct().astype(dtype)
    array[1, 2, 3] = value
    return array


def flipped(data, at):
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


RGB = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
GZ = gzip.compress(packed())
# The file's content, and what the record says of it.
BAD = {
    "empty.nii.gz": (b"", DAMAGED),
    "empty-plain.nii": (b"", DAMAGED),
    "one-byte.nii.gz": (b"\x1f", DAMAGED),
    "text.nii.gz": (b"no image at all " * 40, "is no valid NIfTI file"),
    "html.nii.gz": (b"<!doctype html><title>404</title>" * 20, "is no valid NIfTI file"),
    "zip.nii.gz": (b"PK\x03\x04" + bytes(600), "is no valid NIfTI file"),
    "dicom.nii": (bytes(128) + b"DICM" + bytes(600), "is no valid NIfTI file"),
    "noise.nii.gz": (np.random.default_rng(0).bytes(3000), "is no valid NIfTI file"),
    "half.nii.gz": (GZ[: len(GZ) // 2], DAMAGED),
    "header-alone.nii": (packed()[:352], DAMAGED),
    "last-byte.nii": (packed()[:-1], DAMAGED),
    "no-trailer.nii.gz": (GZ[:-8], DAMAGED),
    "checksum.nii.gz": (flipped(GZ, -6), DAMAGED),
    "length.nii.gz": (flipped(GZ, -1), DAMAGED),
    "stream.nii.gz": (GZ[:100] + bytes(60) + GZ[160:], "is no valid NIfTI file"),
    "gzip-method.nii.gz": (flipped(GZ, 2), DAMAGED),
    "gzip-twice.nii.gz": (gzip.compress(GZ), "is no valid NIfTI file"),
    "gzip-of-nothing.nii.gz": (gzip.compress(b""), DAMAGED),
    "gzip-of-zeros.nii.gz": (gzip.compress(bytes(100_000)), "is no valid NIfTI file"),
    "magic.nii": (packed(magic=b"abc"), "is no valid NIfTI file"),
    "pair.nii": (packed(magic=b"ni1"), "its voxels are in another file"),
    "1e13-voxels.nii": (packed(dim=(3, 32767, 32767, 32767, 1, 1, 1, 1)), "promises 32767 x"),
    "1e15-voxels.nii.gz": (gzip.compress(nifti2((100_000,) * 3)), "promises 100000 x 100000 x"),
    "1e9-voxels.nii.gz": (
        gzip.compress(packed(dim=(3, 1000, 1000, 1000, 1, 1, 1, 1))),
        DAMAGED,
    ),
    "overflow.nii.gz": (gzip.compress(nifti2((2**40, 2**40, 2**40))), "promises 1099511627776 x"),
    "no-voxels.nii": (packed(dim=(3, 4, 0, 6, 1, 1, 1, 1)), "has no voxels (shape 4 x 0 x 6)"),
    "negative.nii": (packed(dim=(3, 4, -5, 6, 1, 1, 1, 1)), "has no voxels"),
    "2d.nii": (packed(dim=(2, 20, 6, 1, 1, 1, 1, 1)), "is not one 3D volume (shape 20 x 6)"),
    "4d.nii.gz": (gzip.compress(packed(np.zeros((4, 5, 3, 2), np.int16))), "4 x 5 x 3 x 2): save"),
    "5d.nii.gz": (gzip.compress(packed(np.zeros((4, 5, 3, 1, 3), np.int16))), "not one 3D volume"),
    "rgb.nii.gz": (gzip.compress(packed(RGB)), "RGB or such, datatype 128): convert it to HU"),
    "complex.nii.gz": (gzip.compress(packed(ct().astype(np.complex64))), "datatype 32"),
    "type.nii": (packed(datatype=999), "is no valid NIfTI file"),
    "offset-nan.nii": (packed(vox_offset=np.nan), "is no valid NIfTI file"),
    "offset-inf.nii": (packed(vox_offset=np.inf), "begin at byte inf"),
    "offset-far.nii": (packed(vox_offset=1e9), "begin at byte 1e+09"),
    "offset-past.nii": (packed(vox_offset=1e5), DAMAGED),
    "slope-inf.nii": (packed(scl_slope=1, scl_inter=np.inf), "is no valid NIfTI file"),
    "affine-nan.nii": (packed(srow_x=np.nan), "an affine that is not finite: mend its sform"),
    "affine-zero.nii": (packed(srow_x=0, srow_y=0, srow_z=0), "spacing of 0 x 0 x 0 mm"),
    "affine-flat.nii": (packed(srow_x=(1, 0, 1, 0), srow_y=(0, 1, 0, 0), srow_z=0), "singular"),
    "spacing-huge.nii": (packed(srow_x=(1e30, 0, 0, 0)), "outside 0.01 to 100.0: mend"),
    "spacing-tiny.nii": (packed(srow_x=(1e-4, 0, 0, 0)), "outside 0.01 to 100.0: mend"),
    "qform.nii": (packed(sform_code=0, qform_code=1, quatern_b=9), "a qform that is no rotation"),
    "all-nan.nii.gz": (gzip.compress(packed(np.full((4, 5, 6), np.nan))), "120 of 120 voxels"),
    "image.mha": (b"ObjectType = Image\n", "is no .nii or .nii.gz file (.mha): convert it"),
    "image2.mhd": (b"ObjectType = Image\n", "is no .nii or .nii.gz file (.mhd): convert it"),
    "image3.nrrd": (b"NRRD0004\n", "is no .nii or .nii.gz file (.nrrd): convert it to NIfTI"),
    "image4.nhdr": (b"NRRD0004\n", "is no .nii or .nii.gz file (.nhdr): convert it to NIfTI"),
    "image5.hdr": (packed()[:348], "is no .nii or .nii.gz file (.hdr): convert it to NIfTI"),
    "image6.mgz": (GZ, "is no .nii or .nii.gz file (.mgz): convert it to NIfTI"),
    "new\nline.nii.gz": (GZ, "has a character that cannot be printed: rename the file"),
    "escape\x1b[31m.nii.gz": (GZ, "has a character that cannot be printed: rename the file"),
    "not-utf8\udcff.nii.gz": (GZ, "has a character that cannot be printed: rename the file"),
}
LINKS = {
    "loop.nii.gz": "is no file, or a link that leads nowhere: check the path",
    "nowhere.nii.gz": "is no file, or a link that leads nowhere: check the path",
    "pipe.nii.gz": "is no file, or a link that leads nowhere: check the path",
    "folder.nii.gz": "is a folder: check the path",
}
GOOD = ("good.nii.gz", "fine_0000.nii.gz")


def make_folder(folder):
    folder.mkdir()
    for name, (data, _) in BAD.items():
        (folder / name).write_bytes(data)
    (folder / "loop.nii.gz").symlink_to("loop.nii.gz")
    (folder / "nowhere.nii.gz").symlink_to("absent.nii.gz")
    os.mkfifo(folder / "pipe.nii.gz")
    (folder / "folder.nii.gz").mkdir()
    for seed, name in enumerate(GOOD):
        save_ct(folder / name, ct(seed=seed))
    return folder


@pytest.fixture(scope="module")
def spoiled(model, tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("bad") / "in")
    before = content(folder)
    predicted = predict(model, folder, folder.parent / "out")
    assert content(folder) == before
    return predicted


@pytest.mark.parametrize(
    ("name", "message"),
    [*((name, message) for name, (_, message) in BAD.items()), *LINKS.items()],
    ids=lambda value: ascii(value),
)
def test_a_bad_image_is_one_line_in_the_record_and_nothing_else(spoiled, name, message):
    case = name.split(".")[0]
    found = {key: text for key, text in spoiled.failures.items() if key in (case, ascii(case))}
    (text,) = found.values() or [ascii(name.removesuffix(".nii.gz"))]
    assert message in text
    assert "defect" not in text
    assert not (spoiled.folder / f"{case}.nii.gz").exists()


def test_the_good_ones_among_them_are_predicted_as_if_alone(spoiled, model, tmp_path):
    assert spoiled.finished.code == 1
    assert sorted(spoiled.cases) == ["fine", "good"]
    assert len(spoiled.failures) == len(BAD) + len(LINKS)
    assert f"(and {len(spoiled.failures) - 1} more in run.json)" in spoiled.finished.last_line
    for seed, name in enumerate(GOOD):
        save_ct(tmp_path / "in" / name, ct(seed=seed))
    alone = predict(model, tmp_path / "in", tmp_path / "out")
    assert alone.finished.code == 0
    expected = content(alone.folder)
    files = content(spoiled.folder)
    assert sorted(files) == sorted(expected)
    for name in ("fine.nii.gz", "good.nii.gz", "subtype_results.csv", "subtype_probabilities.csv"):
        assert files[name] == expected[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_each_of_them_ends_the_command_with_its_message_and_exit_code_1(model, tmp_path, name):
    save_ct(tmp_path / "in" / "good.nii.gz")
    (tmp_path / "in" / name).write_bytes(BAD[name][0])
    predicted = predict(model, tmp_path / "in", tmp_path / "out")
    assert predicted.finished.code == 1
    assert BAD[name][1] in predicted.finished.last_line
    assert "Traceback" not in predicted.finished.stderr
    assert list(predicted.cases) == ["good"]


def test_a_terminal_never_sees_what_it_would_obey(spoiled):
    assert "\x1b" not in spoiled.finished.last_line


# Odd, but readable: the mask comes back, perhaps with a warning in the record.


def scaled(slope, inter, dtype):
    def make():
        image = nib.Nifti1Image(ct().astype(dtype), AFFINE)
        image.header.set_slope_inter(slope, inter)
        return image

    return make


ODD = {
    "int8": (np.clip(ct(), -128, 127).astype(np.int8), None),
    "int32": (ct().astype(np.int32), None),
    "int64": (ct().astype(np.int64), None),
    "uint16 shifted": ((ct() + 1024).astype(np.uint16), "shifted by 1024?; check the rescale"),
    "float64": (ct().astype(np.float64), None),
    "some nan": (with_value(np.nan), "has 1 of 540 voxels that are not finite; they count as -900"),
    "some inf": (with_value(np.inf), "1 of 540 voxels that are not finite"),
    "implant": (with_value(30_000), None),
    "at the window's end": (with_value(250), None),
    "beyond float32": (with_value(1e300, np.float64), "1 of 540 voxels that are not finite"),
    "constant": (np.full((10, 9, 6), 40, np.int16), "every voxel is 40; replace the file"),
    "mri": (np.abs(ct()) % 300, "unlike a CT; check that it is a CT in HU"),
    "one slice": (ct((10, 9, 1)), None),
    "one voxel": (ct((1, 1, 1)), "every voxel is"),
    "4d with one volume": (ct((10, 9, 6, 1)), None),
    "=1+1": (ct(), None),
    "-rf": (ct(), None),
    "@SUM(A1)": (ct(), None),
    'it\'s a "quote"': (ct(), None),
    "ünïcødé 胰腺": (ct(), None),
    "a,b;c": (ct(), None),
    "<script>alert(1)<script>": (ct(), None),
    "$x^2$": (ct(), None),
    "[red]": (ct(), None),
    "%s {0}": (ct(), None),
    "a\\b": (ct(), None),
    "x" * 240: (ct(), None),
}


@pytest.fixture(scope="module")
def odd(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    for name, (array, _) in ODD.items():
        save_ct(folder / "in" / f"{name}.nii.gz", array)
    predicted = predict(model, folder / "in", folder / "out")
    assert predicted.finished.code == 0, predicted.finished.stderr
    return predicted


@pytest.mark.parametrize("name", ODD)
def test_an_odd_image_comes_back_as_a_mask_of_its_grid(odd, name):
    image = nib.load(odd.folder.parent / "in" / f"{name}.nii.gz")
    mask = nib.load(odd.folder / f"{name}.nii.gz")
    assert mask.shape == image.shape
    assert mask.get_data_dtype() == np.uint8
    for field in ("pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"):
        np.testing.assert_array_equal(mask.header[field], image.header[field])
    expected, warnings = ODD[name][1], odd.cases[name]["warnings"]
    assert len(warnings) == (expected is not None), warnings
    if expected:
        assert expected in warnings[0]


def test_values_beyond_the_window_count_as_its_end(odd):
    implant, end = (odd.folder / f"{name}.nii.gz" for name in ("implant", "at the window's end"))
    assert implant.read_bytes() == end.read_bytes()
