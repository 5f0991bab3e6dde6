// A micrograph with outlines, for nanoshape.viewer (anywidget).
// Elements of SVG.
const make = (tag, attributes, parent) => {
  const e = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const k in attributes) e.setAttribute(k, attributes[k]);
  if (parent) parent.appendChild(e);
  return e;
};
// The part of the image that is shown is `view`: x, y, width and height in pixels of the image.
function render({model, el}) {
  const bar = document.createElement('div'), svg = make('svg', {class: 'nv-picture', role: 'group',
    'aria-label': 'micrograph with outlined particles'}, el);
  el.classList.add('nv'); el.insertBefore(bar, svg); bar.className = 'nv-bar';
  const image = make('image', {preserveAspectRatio: 'none'}, svg), layer = make('g', {}, svg);
  const line = make('polyline', {class: 'nv-line'}, svg);
  let size = [1, 1], view = [0, 0, 1, 1], url = null, n = 0;
  const tell = event => { model.set('event', {...event, n: ++n}); model.save_changes(); };
  const scale = () => view[2]/Math.max(svg.clientWidth, 1);
  const apply = () => { svg.setAttribute('viewBox', view.join(' ')); label(); };
  // The picture, and an outline for each particle.
  const picture = () => {
    if (url) URL.revokeObjectURL(url);
    url = URL.createObjectURL(new Blob([model.get('picture')], {type: 'image/png'}));
    size = model.get('pixels');
    image.setAttribute('href', url); image.setAttribute('width', size[0]); image.setAttribute('height', size[1]);
    svg.style.aspectRatio = size[0] + ' / ' + size[1];
    view = [0, 0, ...size]; apply();
  };
  // An outline says its number and answer to whoever points at it, or listens to it; the keyboard reaches it.
  const act = s => tell({kind: model.get('mode') === 'remove' ? 'removed' : 'chosen', label: s.label});
  const shape = s => {
    const p = make('path', {d: s.path, class: 'nv-one' + (s.label === model.get('chosen') ? ' nv-chosen' : ''),
      stroke: s.color, fill: s.color, tabindex: 0, role: 'button', 'aria-label': s.text, 'data-label': s.label}, layer);
    make('title', {}, p).textContent = s.text;
    p.addEventListener('keydown', e => { if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); act(s); } });
    const t = make('text', {x: s.x, y: s.y, class: 'nv-number'}, layer);
    t.textContent = s.label; t.dataset.width = s.width;
  };
  // All of them.
  const shapes = () => { layer.replaceChildren(); model.get('shapes').forEach(shape); label(); };
  // A number is written only where there is room for it.
  const label = () => layer.querySelectorAll('text').forEach(t => {
    t.setAttribute('font-size', 12*scale());
    t.style.display = t.dataset.width > 22*scale() ? '' : 'none';
  });
  // The wheel or the buttons zoom around a point, dragging moves what is enlarged.
  const zoom = (f, x, y) => {
    const w = Math.min(size[0], Math.max(size[0]/50, view[2]*f)), k = w/view[2];
    view = [x - (x - view[0])*k, y - (y - view[1])*k, w, view[3]*k];
    inside();
  };
  // Never beyond the image. On a touch screen the page still scrolls while the whole image is shown.
  const inside = () => {
    for (const k of [0, 1]) view[k] = Math.min(Math.max(view[k], 0), size[k] - view[k + 2]);
    svg.style.touchAction = view[2] < size[0] || model.get('mode') === 'draw' ? 'none' : 'pan-y';
    apply();
  };
  const all = () => { view = [0, 0, ...size]; inside(); };
  // Buttons; a double click shows all again.
  const at = e => {
    const p = new DOMPoint(e.clientX, e.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [p.x, p.y];
  };
  const button = (text, title, action) => {
    const b = document.createElement('button');
    b.textContent = text; b.title = title; b.setAttribute('aria-label', title); b.onclick = action; bar.appendChild(b);
  };
  const middle = () => [view[0] + view[2]/2, view[1] + view[3]/2];
  button('+', 'zoom in', () => zoom(.7, ...middle())); button('−', 'zoom out', () => zoom(1/.7, ...middle()));
  button('whole image', 'show the whole image', all);
  const wheel = e => { e.preventDefault(); zoom(e.deltaY < 0 ? .83 : 1.2, ...at(e)); };
  svg.addEventListener('wheel', wheel, {passive: false});
  svg.addEventListener('dblclick', all);
  // The pointer: in the mode `look` a click chooses and a drag moves, in `draw` a drag is an outline, in `remove` a click removes.
  let from = null, points = [];
  svg.addEventListener('pointerdown', e => {
    from = {at: at(e), x: e.clientX, y: e.clientY, view: [...view], on: e.target.dataset.label}; points = [from.at];
    svg.setPointerCapture(e.pointerId);
  });
  svg.addEventListener('pointermove', e => {
    if (!from) return;
    if (model.get('mode') === 'draw') {
      points.push(at(e)); line.setAttribute('points', points.join(' '));
    } else if (view[2] < size[0]) {
      view[0] = from.view[0] - (e.clientX - from.x)*scale(); view[1] = from.view[1] - (e.clientY - from.y)*scale();
      inside();
    }
  });
  // A click is a press that hardly moved.
  svg.addEventListener('pointerup', e => {
    if (!from) return;
    const moved = Math.hypot(e.clientX - from.x, e.clientY - from.y) > 4, drawn = model.get('mode') === 'draw';
    if (drawn && points.length > 5) tell({kind: 'drawn', points});
    else if (!moved && !drawn && from.on) act({label: +from.on});
    from = null; line.setAttribute('points', '');
  });
  svg.addEventListener('pointercancel', () => { from = null; line.setAttribute('points', ''); });
  // What Python changes.
  const mode = () => { el.dataset.mode = model.get('mode'); inside(); };
  model.on('change:picture', picture); model.on('change:mode', mode);
  model.on('change:shapes', shapes); model.on('change:chosen', shapes);
  const seen = new ResizeObserver(label); seen.observe(svg);
  if (model.get('picture').byteLength) picture();
  shapes(); mode();
  return () => { seen.disconnect(); if (url) URL.revokeObjectURL(url); };
}
export default { render };
