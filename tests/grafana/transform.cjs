// Runs Grafana's own transformations over panels' data. Reads from standard input a list of
//   {transformations, matchers, frames}
// and writes for each {names, matched}: the names of the fields that come out, as Grafana shows them, and for each
// matcher of an override how many fields it finds.
const {
  getFieldDisplayName, getFieldMatcher, standardTransformers, standardTransformersRegistry, toDataFrame,
  transformDataFrame,
} = require('@grafana/data');

globalThis.window = {};  // where Grafana looks whether its page is made of scenes
// Some transformations have an old name besides.
const transformers = new Map(Object.values(standardTransformers).map((it) => [it.id, it]));
standardTransformersRegistry.setInit(() =>
  [...transformers.values()].map((it) => ({ id: it.id, name: it.name, transformation: () => it })));

function transformed(transformations, frames) {
  return new Promise((resolve, reject) =>
    transformDataFrame(transformations, frames).subscribe({ next: resolve, error: reject }));
}

async function shown({ transformations, matchers, frames }) {
  const made = await transformed(transformations, frames.map(toDataFrame));
  const fields = made.flatMap((frame) => frame.fields.map((field) => [field, frame]));
  return {
    names: fields.map(([field, frame]) => getFieldDisplayName(field, frame, made)),
    matched: matchers.map((it) => fields.filter(([field, frame]) => getFieldMatcher(it)(field, frame, made)).length),
  };
}

const panels = JSON.parse(require('fs').readFileSync(0, 'utf8'));
Promise.all(panels.map(shown)).then((answers) => console.log(JSON.stringify(answers)));
