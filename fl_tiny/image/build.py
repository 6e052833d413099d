# SPDX-License-Identifier: Apache-2.0
"""Carry out a plan: one function a kind of step; what was made of the same inputs before is taken again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fl_tiny.errors import ConfigError, EnvironmentFault
from fl_tiny.image import bill, disk, kernel, plan, tools
from fl_tiny.image.boards import ALIGN_MIB
from fl_tiny.image.plan import MIB

FORM = 1  # raised when what is made of the same inputs changes, so that older work is not taken again
COMPONENTS = "main,contrib,non-free-firmware"
LEFT_OUT = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/doc/*")
BINFMT = Path("/proc/sys/fs/binfmt_misc")
BINFMT_LINE = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
NEEDS = (
    "mmdebstrap", "arch-test", "qemu-aarch64-static", "tar", "unshare", "mksquashfs", "unsquashfs", "mkfs.vfat",
    "mcopy", "mke2fs", "grub-mkimage", "dpkg-deb", "genimage", "bmaptool", "xz",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are: recipes, our packages, work that is kept; the commit's time; how progress is told.

    lock: versions and digests of Debian's packages.   update_lock: write them there; locked: take no others.
    """

    recipes: Path
    packages: Path
    work: Path
    epoch: int
    say: Callable[[str], None]
    lock: Path
    update_lock: bool = False
    locked: bool = False


def build(steps: tuple[plan.Step, ...], places: Places, out: Path) -> dict[str, Path]:
    """Make the image that the steps describe below ``out``; the files made, by kind.

    Raises: EnvironmentFault; DataError for a kernel that is not enough for its board.
    """
    _, _, boot_step, data_step, disk_step, papers = steps
    assert isinstance(boot_step, plan.Boot) and isinstance(data_step, plan.Data)
    assert isinstance(disk_step, plan.Disk) and isinstance(papers, plan.Papers)
    root, packages, slot = make_release(steps, places)
    out.mkdir(parents=True, exist_ok=True)
    boot = make_boot(boot_step, root, slot, places)
    data = make_data(data_step, places)
    image = out / f"{papers.stem}.img"
    make_disk(disk_step, {"boot": boot, "slot-a": slot / "slot.squashfs", "data": data}, image, places)
    lists = make_bill(papers, packages, slot, out, places.epoch)
    return {"image": image, **make_papers(papers.title, image, places), **lists}


def make_release(steps: tuple[plan.Step, ...], places: Places) -> tuple[Path, list[bill.Package], Path]:
    """What images and bundles of a release share: the root, its packages, the slot. Raises: as ``build``."""
    root_step, slot_step = steps[:2]
    assert isinstance(root_step, plan.Root) and isinstance(slot_step, plan.Slot)
    if slot_step.kernel:  # before anything that takes long
        kernel.demand(kernel.of_package(Path(slot_step.kernel)), slot_step)
    tools.demand(NEEDS)
    foreign(places.say)
    root = make_root(root_step, places)
    if not slot_step.kernel:
        kernel.demand(kernel.of_root(root / "root.tar"), slot_step)
    packages = bill.known(root / "fetched/installed.txt", root / "fetched/fetched.txt")
    mind_lock(packages, places)
    return root, packages, make_slot(slot_step, root, places)


def mind_lock(packages: list[bill.Package], places: Places) -> None:
    """Debian drops a package for its newer version: that is said, and refused only where it was asked for.

    Raises: EnvironmentFault that names what the mirror has instead; ConfigError for a bad lock, or none.
    """
    if places.update_lock:
        bill.write_lock(places.lock, packages)
    elif places.locked or places.lock.exists():
        odd = bill.differences(places.lock, packages)
        if odd and places.locked:
            what = f"the mirror has other packages than {places.lock}: {odd}"
            raise EnvironmentFault(what, hint="take a mirror that has those, or build without --locked")
        if odd:
            places.say(f"lock: not those of {places.lock.name}, which lists what was tested: {odd}")


def foreign(say: Callable[[str], None]) -> None:
    """See to it that arm64 programs run here. Raises: EnvironmentFault, when root must register QEMU for them."""
    if os.uname().machine == "aarch64" or (BINFMT / "qemu-aarch64").exists():
        return
    hint = "as root: mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc, then systemctl restart systemd-binfmt"
    if os.geteuid() != 0 or not BINFMT_LINE.exists():
        raise EnvironmentFault("arm64 programs do not run here", hint)
    if not (BINFMT / "register").exists():
        tools.run("mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT)
    try:
        (BINFMT / "register").write_text(BINFMT_LINE.read_text())
    except OSError as refused:
        raise EnvironmentFault(f"arm64 programs do not run here: {refused.strerror}", hint) from refused
    say("qemu-aarch64 registered for arm64 programs, until this machine restarts")


def make_root(step: plan.Root, places: Places) -> Path:
    """A folder with root.tar, the fetched packages and what apt said of all: one run of mmdebstrap for all boards."""
    key = _key(step, FORM)
    made = places.work / "roots" / f"{step.suite}-{key}"
    if made.is_dir():
        places.say(f"root: kept, {made}")
        return made
    rights = "as root" if os.geteuid() == 0 else "in a user namespace"
    places.say(f"root: {len(step.packages)} packages of {step.suite} and what they need, {rights}; minutes")
    with _draft(made) as draft:
        mode = "root" if os.geteuid() == 0 else "unshare"
        command: list[object] = ["mmdebstrap", f"--mode={mode}", "--variant=minbase", "--architectures=arm64"]
        command += [f"--components={COMPONENTS}", f"--include={','.join(step.packages)}"]
        command += [f"--dpkgopt=path-exclude={each}" for each in LEFT_OUT]
        command += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
        command += [f"--setup-hook={line}" for line in _backports(step)]
        command += [f"--customize-hook={line}" for line in _fetching(step, draft)]
        command += [step.suite, draft / "root.tar"]
        settings = {"SOURCE_DATE_EPOCH": str(places.epoch), "INITRD": "No"}  # the slot's step makes it, once
        (draft / "epoch").write_text(f"{places.epoch}\n")
        tools.run(*command, env=settings, log=draft.with_suffix(".log"))
    return made


def _backports(step: plan.Root) -> Iterator[str]:
    """Hooks by which kernels, and they alone, come from the suite's backports, from wherever the suite itself comes."""
    if step.backports:
        line = f"sed -n 's/ {step.suite} / {step.backports} /p;1q' \"$1/etc/apt/sources.list\""
        yield f'{line} > "$1/etc/apt/sources.list.d/backports.list"'
        pin = f"Package: linux-*\\nPin: release n={step.backports}\\nPin-Priority: 500\\n"
        yield f'printf "{pin}" > "$1/etc/apt/preferences.d/backports"'


def _fetching(step: plan.Root, draft: Path) -> Iterator[str]:
    """Hooks that bring out what is fetched only, and what the mirror says of each package that was used."""
    apt = 'cd "$1/fetched" && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"'
    names = " ".join(step.fetched)
    yield 'mkdir "$1/fetched"'
    yield f"{apt} && apt-get download -qq {names} && apt-cache show --no-all-versions {names} > fetched.txt"
    yield f"""{apt} && dpkg-query --root="$1" -W -f '${{Package}}:${{Architecture}}=${{Version}}\\n' \
        | sed 's/:all=/=/' | xargs apt-cache show > installed.txt"""
    yield f'copy-out /fetched "{draft}"'
    yield 'rm -r "$1/fetched"'


def make_slot(step: plan.Slot, root: Path, places: Places) -> Path:
    """A folder with slot.squashfs and what is known of its contents."""
    ours = [_ours(places.packages, name) for name in step.packages]
    if step.kernel:
        ours.append(Path(step.kernel))
    hooks, overlay = places.recipes / "hooks", places.recipes / "overlay"
    given = [Path(step.ca)] if step.ca else []
    key = _key(step, root.name, places.epoch, *_digests([*ours, *given, hooks, overlay, places.recipes / "templates"]))
    made = places.work / "slots" / f"{dict(step.words)['@COMPATIBLE@']}-{key}"
    if made.is_dir():
        places.say(f"slot: kept, {made}")
        return made
    places.say(f"slot: {', '.join(path.name for path in ours)}; the initrd, modules, squashfs; a minute or two")
    with _draft(made) as draft:
        settings = draft / "settings"
        _settings(step, ours, root, places, settings)
        helper = ["unshare", "-m", "-p", "-f", "--kill-child"]
        if os.geteuid() != 0:  # root there is this user, so that the draft can be written; others are of /etc/subuid
            helper += ["--map-root-user", "--map-auto"]
        tools.run(*helper, hooks / "compose", root / "root.tar", settings, draft, log=draft.with_suffix(".log"))
        shutil.rmtree(settings)
        size = (draft / "slot.squashfs").stat().st_size
        if size > step.limit_mib * MIB:
            raise ConfigError(f"the slot takes {size} B, the board gives it {step.limit_mib} MiB", "disk.slot_mib")
    return made


def _settings(step: plan.Slot, ours: list[Path], root: Path, places: Places, settings: Path) -> None:
    """What hooks/compose reads."""
    shutil.copytree(places.recipes / "hooks", settings)
    overlay = settings / "overlay"
    shutil.copytree(places.recipes / "overlay", overlay, symlinks=True)
    words = dict(step.words)
    for path in [path for path in overlay.rglob("*") if path.is_file()]:
        fill(path, words)
    (overlay / "etc/rauc").mkdir()
    for slot in ("@SLOT_A@", "@SLOT_B@"):  # RAUC wants a device where the kernel takes an id
        words[slot] = words[slot].replace("PARTUUID=", "/dev/disk/by-partuuid/")
    shutil.copy(places.recipes / "templates/rauc-system.conf", overlay / "etc/rauc/system.conf")
    fill(overlay / "etc/rauc/system.conf", words)
    if step.ca:
        shutil.copy(step.ca, overlay / "etc/rauc/keyring.pem")
    (settings / "debs").mkdir()
    for path in ours:
        shutil.copy(path, settings / "debs")
    for name in ("enable", "mask", "modules", "initrd", "device_trees", "remove"):
        (settings / name).write_text("".join(f"{line}\n" for line in getattr(step, name)))
    (settings / "epoch").write_text(f"{places.epoch}\n")
    shutil.copy(root / "epoch", settings / "root_epoch")


def _ours(folder: Path, name: str) -> Path:
    """A package of ours for arm64. Raises: ConfigError when it is not there, or not once."""
    found = sorted([*folder.glob(f"{name}_*_all.deb"), *folder.glob(f"{name}_*_arm64.deb")])
    if len(found) != 1:
        raise ConfigError(
            f"{folder} holds {len(found)} packages {name}", hint="make them by scripts/deb; --packages DIR"
        )
    return found[0]


def make_boot(step: plan.Boot, root: Path, slot: Path, places: Places) -> Path:
    """The FAT partition as a file."""
    templates = places.recipes / "templates"
    key = _key(step, slot.name, places.epoch, *_digests([templates]))
    made = places.work / "boots" / f"{dict(step.words)['@COMPATIBLE@']}-{key}.vfat"
    if made.exists():
        places.say(f"boot: kept, {made}")
        return made
    places.say("boot: GRUB and the files beside it on FAT")
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as stage:
        tree, packages = Path(stage, "fat"), Path(stage, "packages")
        for deb in sorted((root / "fetched").glob("*.deb")):
            tools.run("dpkg-deb", "-x", deb, packages)
        (tree / "EFI/BOOT").mkdir(parents=True)
        grub = ("-d", packages / "usr/lib/grub/arm64-efi", "-O", "arm64-efi", "-p", "/grub")
        tools.run("grub-mkimage", *grub, "-o", tree / "EFI/BOOT/BOOTAA64.EFI", *step.modules)
        for source, target in step.files:
            _into(packages / source, tree / target)
        for source, target in step.from_slot:
            _from_slot(slot / "slot.squashfs", source, tree / target)
        shutil.copytree(templates / "fl-state", tree / "fl-state")
        for template, target in step.templates:
            _into(templates / template, tree / target)
            fill(tree / target, dict(step.words))
        make_fat(step, tree, made, places.epoch)
    return made


def make_fat(step: plan.Boot, tree: Path, made: Path, epoch: int) -> None:
    """A FAT filesystem of a tree, without mounting it; the same bytes for the same tree."""
    for path in [tree, *tree.rglob("*")]:
        os.utime(path, (epoch, epoch))
    draft = made.with_suffix(".part")
    draft.unlink(missing_ok=True)
    options = ["-F", "32", "-n", plan.FAT_LABEL, "-i", step.serial, "--invariant"]
    tools.run("mkfs.vfat", *options, "-C", draft, step.size_mib * 1024)
    settings = {"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC"}
    tools.run("mcopy", "-s", "-m", "-Q", "-i", draft, *sorted(tree.iterdir()), "::", env=settings)
    draft.replace(made)


def make_data(step: plan.Data, places: Places) -> Path:
    """An empty ext4 as a file."""
    made = places.work / "datas" / f"{step.uuid}-{step.size_mib}-{places.epoch}.ext4"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        draft = made.with_suffix(".part")
        draft.unlink(missing_ok=True)
        extended = f"hash_seed={step.uuid},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
        options = ["-t", "ext4", "-b", "4096", "-i", "16384", "-m", "0", "-L", plan.DATA_LABEL, "-U", step.uuid]
        settings = {"E2FSPROGS_FAKE_TIME": str(places.epoch), "SOURCE_DATE_EPOCH": str(places.epoch)}
        tools.run("mke2fs", "-q", *options, "-E", extended, draft, f"{step.size_mib}M", env=settings)
        draft.replace(made)
    return made


def make_disk(step: plan.Disk, parts: dict[str, Path], image: Path, places: Places) -> None:
    """The whole disk as a sparse file, by genimage."""
    places.say(f"disk: {image}")
    work = places.work / f"disk-{step.signature}"
    shutil.rmtree(work, ignore_errors=True)
    for name in ("root", "input", "tmp", "out"):
        (work / name).mkdir(parents=True)
    lines = [f"image {image.name} {{", "  hdimage {", "    partition-table-type = mbr"]
    lines += [
        f"    disk-signature = 0x{step.signature}",
        f"    align = {ALIGN_MIB}M",
        "  }",
        f"  size = {step.size_mib}M",
    ]
    for name, start, size, kind in step.parts:
        file = f'image = "{parts[name].resolve()}"; ' if name in parts else ""
        lines.append(f"  partition {name} {{ {file}offset = {start}M; size = {size}M; partition-type = {kind:#x} }}")
    config = work / "genimage.cfg"
    config.write_text("\n".join([*lines, "}"]).replace("; ", "\n    ") + "\n")
    folders = [
        f"--{name}path={work / where}"
        for name, where in (("root", "root"), ("input", "input"), ("tmp", "tmp"), ("output", "out"))
    ]
    tools.run("genimage", "--config", config, *folders)
    os.truncate(work / "out" / image.name, step.size_mib * MIB)
    (work / "out" / image.name).replace(image)
    shutil.rmtree(work)


def make_papers(board: str, image: Path, places: Places) -> dict[str, Path]:
    """The block map and the compressed form of an image, and what Raspberry Pi Imager wants to know of it."""
    places.say("papers: block map, compressed image")
    bmap, packed = image.with_suffix(".bmap"), image.with_suffix(".img.xz")
    tools.run("bmaptool", "create", "-o", bmap, image)
    tools.run("xz", "-k", "-f", "-T2", "-3", "--block-size=16MiB", image)
    listed = image.with_suffix(".os_list.json")
    listed.write_text(os_list(board, image, packed))
    return {"bmap": bmap, "compressed": packed, "os_list": listed}


def os_list(title: str, image: Path, packed: Path) -> str:
    """What Raspberry Pi Imager's --repo reads; a release puts its own place before the file's name.

    Source: github.com/raspberrypi/rpi-imager, doc/json-schema/os-list-schema.json
    """
    entry = {
        "name": f"fl-tiny, {title}",
        "description": "Federated learning of small models; settings are in fl-tiny.toml on the card",
        "url": packed.name,
        "extract_size": image.stat().st_size,
        "extract_sha256": disk.sha256(image),
        "image_download_size": packed.stat().st_size,
        "image_download_sha256": disk.sha256(packed),
        "init_format": "none",
    }
    return json.dumps({"os_list": [entry]}, indent=1) + "\n"


def make_bill(step: plan.Papers, packages: list[bill.Package], slot: Path, out: Path, epoch: int) -> dict[str, Path]:
    """What the image is made of: as SPDX, its licences as text, and a lock that another build can be held to."""
    every = sorted([*packages, *bill.ours(slot / "packages.tsv", packages)], key=lambda each: each.name)
    with tempfile.TemporaryDirectory() as folder:
        tools.run("unsquashfs", "-f", "-q", "-n", "-d", folder, slot / "slot.squashfs", "usr/share/doc")
        licences = bill.licences(Path(folder, "usr/share/doc"))
    made = tools.run("date", "-u", "-d", f"@{epoch}", "+%Y-%m-%dT%H:%M:%SZ").strip()
    spdx, text = out / f"{step.stem}.spdx.json", out / f"{step.stem}.licences.txt"
    spdx.write_text(bill.as_spdx(step.stem, made, every, licences))
    text.write_text(bill.as_text(every, licences))
    lock = out / f"{step.stem}.lock.toml"
    bill.write_lock(lock, packages)
    return {"sbom": spdx, "licences": text, "lock": lock}


def fill(path: Path, words: dict[str, str]) -> None:
    """Put values where a text calls them by their names."""
    text = path.read_text()
    for word, value in words.items():
        text = text.replace(word, value)
    path.write_text(text)


def _into(source: Path, target: Path) -> None:
    if not source.is_file():
        raise ConfigError(f"no package has a file {source.name}, for FAT's {target.name}", hint="firmware.files")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _from_slot(slot: Path, tree: str, target: Path) -> None:
    """A device tree out of a slot."""
    found = tools.run("unsquashfs", "-l", slot, "usr/lib").split("\n")
    inside = [line for line in found if line.endswith(f"/{tree}")]
    if len(inside) != 1:
        raise ConfigError(f"the kernel's package has no device tree {tree}", hint="kernel.device_trees")
    target.parent.mkdir(parents=True, exist_ok=True)
    data = tools.run_bytes("unsquashfs", "-cat", slot, inside[0].removeprefix("squashfs-root/"))
    target.write_bytes(data)


@contextlib.contextmanager
def _draft(made: Path) -> Iterator[Path]:
    """A folder that is there as a whole or not at all; what is left of one that failed is there to be looked at."""
    draft = made.with_name(made.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    yield draft
    draft.replace(made)


def _key(step: plan.Step, *more: object) -> str:
    """A name for what a step makes of its inputs."""
    text = json.dumps([type(step).__name__, asdict(step), list(map(str, more))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _digests(paths: Iterable[Path]) -> Iterator[str]:
    """Of each file: its name, its mode and its bytes."""
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                yield f"{file.relative_to(path.parent)} {file.stat().st_mode & 0o111} "
                yield hashlib.sha256(file.read_bytes()).hexdigest()
