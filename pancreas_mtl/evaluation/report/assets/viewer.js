"use strict";

// The viewer of one case: NiiVue on a canvas, or the case's picture where there is no WebGL 2.
// Nothing here runs, and no volume is unpacked, before the first case is opened.
const viewer = (() => {
  const dialog = document.getElementById("viewer");
  if (!dialog) return null;
  const part = (name) => document.getElementById(`viewer-${name}`);
  const canvas = part("canvas");
  const LABELS = {
    prediction: { R: [0, 255, 255], G: [0, 176, 77], B: [0, 0, 109], A: [0, 255, 255] },
    reference: { R: [0, 64, 74], G: [0, 169, 222], B: [0, 255, 128], A: [0, 255, 255] },
  };
  const HEADER_BYTES = 352;
  const OVERLAYS = ["attention", "prediction", "reference"]; // in the order of drawing
  let nv = null; // NiiVue, once started
  let starting = null; // its start, so that two quick openings share one
  let loaded = null; // the volumes of the open case, the CT first
  let row = null; // the open case
  let opening = 0; // counts openings, so that a slow one does not overwrite the next

  // Unpacking

  const block = (id) => document.getElementById(id);
  const bytes = (text) => Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  const gunzip = async (packed) => {
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  // A CT is a NIfTI header and one JPEG whose tiles are its slices.
  async function unpackCt(element) {
    const { header, shape, tile, columns } = element.dataset;
    const [depth, height, width] = shape.split(",").map(Number);
    const [tileHeight, tileWidth] = tile.split(",").map(Number);
    const jpeg = new Blob([bytes(element.textContent)], { type: "image/jpeg" });
    const sheet = await createImageBitmap(jpeg, { colorSpaceConversion: "none" });
    const scratch = document.createElement("canvas");
    [scratch.width, scratch.height] = [sheet.width, sheet.height];
    const context = scratch.getContext("2d", { willReadFrequently: true });
    context.drawImage(sheet, 0, 0);
    const head = bytes(header);
    const nifti = new Uint8Array(head.length + depth * height * width);
    nifti.set(head);
    let at = head.length;
    for (let d = 0; d < depth; d++) {
      const x = (d % columns) * tileWidth;
      const y = Math.floor(d / columns) * tileHeight;
      const { data } = context.getImageData(x, y, width, height);
      for (let i = 0; i < data.length; i += 4) nifti[at++] = data[i];
    }
    return nifti.buffer;
  }

  // Keep of a mask what borders, within its axial slice, on another label: outlines that stay thin
  // however thick the slices are. The pancreas has no outline towards the lesion within it.
  function outlines(nifti) {
    const [width, height] = new Int16Array(nifti.buffer, 42, 2);
    const [mask, edges] = [nifti.subarray(HEADER_BYTES), nifti.slice()];
    for (let i = 0; i < mask.length; i++) {
      const [x, y] = [i % width, Math.floor(i / width) % height];
      const inside = (neighbour) => mask[neighbour] >= mask[i];
      const isInner =
        (x === 0 || inside(i - 1)) && (x === width - 1 || inside(i + 1)) &&
        (y === 0 || inside(i - width)) && (y === height - 1 || inside(i + width));
      if (isInner) edges[HEADER_BYTES + i] = 0;
    }
    return edges;
  }

  // NiiVue

  async function start() {
    const code = await gunzip(bytes(block("niivue-code").textContent));
    const script = document.createElement("script");
    script.src = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
    await new Promise((resolve, reject) => {
      [script.onload, script.onerror] = [resolve, reject];
      document.head.append(script);
    });
    const fresh = new niivue.Niivue({
      backColor: [0.04, 0.05, 0.06, 1],
      crosshairColor: [1, 1, 1, 0.45],
      crosshairWidth: 0.25,
      crosshairWidthUnit: "mm",
      crosshairGap: 8,
      dragAndDropEnabled: false,
      isRadiologicalConvention: true,
      loadingText: "",
      logLevel: "error",
      multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID,
      multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
      sagittalNoseLeft: true,
      show3Dcrosshair: false,
      viewModeHotKey: "",
      clipPlaneHotKey: "",
    });
    await fresh.attachToCanvas(canvas);
    nv = fresh;
  }

  const chosen = (name) => dialog.querySelector(`input[name=${name}]:checked`).value;
  const shown = (name) => block(`show-${name}`).checked;
  const range = () => chosen("window").split(",").map(Number);

  async function volume(name, buffer, colormap) {
    const [low, high] = name === "ct" ? range() : [NaN, NaN];
    const image = await niivue.NVImage.new(buffer, `${name}.nii`, colormap, 1, null, low, high);
    image.id = name;
    return image;
  }

  async function load(ids, isCurrent) {
    const volumes = [await volume("ct", await unpackCt(block(ids.ct)), "gray")];
    for (const name of OVERLAYS) {
      const element = block(ids[name]);
      if (!element) continue;
      const nifti = await gunzip(bytes(element.textContent));
      if (name === "attention") {
        volumes.push(await volume(name, nifti.buffer, "inferno"));
        [volumes.at(-1).cal_min, volumes.at(-1).cal_max] = [16, 255];
        continue;
      }
      for (const [layer, voxels] of [["fill", nifti], ["outline", outlines(nifti)]]) {
        const image = await volume(name, voxels.buffer, "gray");
        image.setColormapLabel(LABELS[name]);
        image.isOutline = layer === "outline";
        volumes.push(image);
      }
    }
    if (!isCurrent()) return;
    loaded = volumes;
    nv.scene.crosshairPos = block(ids.ct).dataset.focus.split(",").map(Number);
    paint();
  }

  // Bring view, window, overlays and fill up to date with the panel.
  function paint() {
    if (!loaded) return;
    const [ct, ...overlays] = loaded;
    const fill = Number(block("fill").value);
    const in3d = chosen("view") === "RENDER"; // the masks alone, so faint that lesions shine through
    const strength = in3d
      ? { prediction: fill / 5, reference: fill / 5, attention: fill / 5 }
      : { prediction: fill, reference: fill / 4, attention: Math.max(fill, 0.2) };
    [ct.cal_min, ct.cal_max] = range();
    ct.opacity = in3d ? 0 : 1;
    const visible = overlays.filter((image) => shown(image.id) && !(in3d && image.isOutline));
    for (const image of visible) image.opacity = image.isOutline ? 1 : strength[image.id];
    nv.opts.sliceType = niivue.SLICE_TYPE[chosen("view")];
    nv.volumes = [ct, ...visible];
    nv.setVolume(ct, 0);
  }

  // The panel

  function describe(ids) {
    const name = row.querySelector("th").textContent.trim();
    part("title").textContent = name;
    const facts = part("facts");
    facts.replaceChildren();
    const heads = [...document.querySelectorAll("#case-table thead th")];
    for (const head of heads.slice(1)) {
      const cell = row.cells[head.cellIndex];
      if (!cell.textContent.trim()) continue;
      const [term, detail] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = head.textContent.trim();
      detail.append(...[...cell.childNodes].map((node) => node.cloneNode(true)));
      facts.append(term, detail);
    }
    const rows = visibleRows();
    part("position").textContent = `${rows.indexOf(row) + 1} of ${rows.length}`;
    for (const overlay of OVERLAYS) {
      block(`show-${overlay}`).disabled = !block(ids[overlay]);
    }
    block("attention-note").hidden = !block(ids.attention);
    const spacing = block(ids.ct)?.dataset.spacing;
    part("voxels").textContent = spacing ? `Voxels of ${spacing} mm.` : "";
  }

  function showPicture(ids) {
    const picture = part("picture");
    const data = block(ids.picture);
    picture.hidden = !data;
    if (data) picture.src = `data:image/jpeg;base64,${data.textContent.trim()}`;
    picture.alt = `CT of ${part("title").textContent} in three planes through the lesion`;
    canvas.hidden = true;
  }

  const hasWebgl = () => Boolean(document.createElement("canvas").getContext("webgl2"));

  async function open(target) {
    row = target;
    const ticket = ++opening;
    const isCurrent = () => ticket === opening;
    const ids = { ct: `ct-${row.dataset.volumes}`, reference: `reference-${row.dataset.volumes}` };
    for (const name of ["prediction", "attention", "picture"]) ids[name] = `${name}-${row.id}`;
    describe(ids);
    if (!nv) showPicture(ids);
    if (!dialog.open) dialog.showModal();
    history.replaceState(null, "", `#${row.id}`);
    const problem = !row.dataset.volumes
      ? "No pictures of this case; its row says why."
      : hasWebgl() ? "" : "No WebGL 2 in this browser: the picture instead of the viewer.";
    part("status").textContent = problem;
    dialog.dataset.state = problem ? "picture" : "loading";
    if (problem) return showPicture(ids);
    canvas.hidden = false;
    try {
      await (starting ??= start());
      await load(ids, isCurrent);
      if (!isCurrent()) return;
      part("picture").hidden = true;
      dialog.dataset.state = "ready";
    } catch (error) {
      console.error(error);
      if (!isCurrent()) return;
      showPicture(ids);
      part("status").textContent = `The viewer failed, so here is the picture (${error.message}).`;
      dialog.dataset.state = "picture";
    }
  }

  function step(by) {
    const rows = visibleRows();
    const next = rows[rows.indexOf(row) + by];
    if (next) open(next);
  }

  part("previous").addEventListener("click", () => step(-1));
  part("next").addEventListener("click", () => step(1));
  part("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    dialog.dataset.state = "closed";
    history.replaceState(null, "", location.pathname);
  });
  dialog.addEventListener("input", paint);
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inControl = event.target.matches("input[type=range], input[type=radio]");
    const toggles = { p: "prediction", r: "reference", w: "attention" };
    if (event.key === "ArrowRight" && !inControl) step(1);
    else if (event.key === "ArrowLeft" && !inControl) step(-1);
    else if (toggles[event.key]) block(`show-${toggles[event.key]}`).click();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }, true);

  return { open, dialog, get nv() { return nv; } };
})();
