// Draws a dashboard with Grafana's own components (npm's @grafana/ui). The page has `window.panels`, a list of
//   {panel, frames, range: [from, to]}, times in milliseconds,
// `window.size` {width, row} in pixels, and in the end <pre id="panels"> with a JSON list of {title, type, text, ink, error, empty}; see draw.py.
import '@fontsource/inter/400.css';
import '@fontsource/inter/500.css';
import React from 'react';
import { createRoot } from 'react-dom/client';
import {
  applyFieldOverrides, cacheFieldDisplayNames, createTheme, dateTime, fieldMatchers, FieldConfigOptionsRegistry,
  FieldMatcherID, getFieldDisplayName, getFieldDisplayValues, standardTransformers, standardTransformersRegistry,
  toDataFrame, transformDataFrame,
} from '@grafana/data';
import { BigValue, GlobalStyles, PanelChrome, preparePlotFrame, ThemeContext, TimeSeries } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';

const { width: WIDTH, row: ROW } = window.size, GAP = 8, COLUMNS = 24;  // pixels, as in Grafana
const theme = createTheme({ colors: { mode: 'dark' } });
const transformers = new Map(Object.values(standardTransformers).map((it) => [it.id, it]));
standardTransformersRegistry.setInit(() =>
  [...transformers.values()].map((it) => ({ id: it.id, name: it.name, transformation: () => it })));

// What a panel without these settings has in Grafana: the defaults of its plugins `timeseries` and `trend`.
const LINE = {
  drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: 0, gradientMode: 'none', pointSize: 5,
  showPoints: 'auto', spanNulls: false, axisPlacement: 'auto', axisColorMode: 'text', axisBorderShow: false,
  axisCenteredZero: false, axisLabel: '', barAlignment: 0, barWidthFactor: 0.6, scaleDistribution: { type: 'linear' },
  hideFrom: { legend: false, tooltip: false, viz: false }, thresholdsStyle: { mode: 'off' }, insertNulls: false,
  stacking: { group: 'A', mode: 'none' },
};
const SETTINGS = ['unit', 'min', 'max', 'decimals', 'thresholds', 'mappings', 'color', 'displayName', 'noValue', 'links'];

function setting(id, isCustom) {
  const path = isCustom ? id.replace('custom.', '') : id;
  return { id, path, name: id, isCustom, process: (value) => value, shouldApply: () => true, getItemsCount: () => 0 };
}

function registry(panel) {
  const overridden = panel.fieldConfig.overrides.flatMap((it) => it.properties.map((found) => found.id));
  const custom = [...Object.keys(LINE), 'fillBelowTo', 'axisSoftMin', 'width', 'align', 'cellOptions'].map((it) => `custom.${it}`);
  const all = new Set([...custom, ...overridden.filter((it) => it.startsWith('custom.'))]);
  return new FieldConfigOptionsRegistry(() =>
    [...SETTINGS.map((it) => setting(it, false)), ...[...all].map((it) => setting(it, true))]);
}

function transformed(transformations, frames) {
  return new Promise((resolve, reject) =>
    transformDataFrame(transformations, frames).subscribe({ next: resolve, error: reject }));
}

async function prepared({ panel, frames }) {
  if (panel.type === 'row') return [];
  const lines = ['timeseries', 'trend'].includes(panel.type);
  const { defaults, overrides } = panel.fieldConfig;
  const fieldConfig = {
    defaults: {
      ...defaults,
      color: defaults.color ?? { mode: lines ? 'palette-classic' : 'thresholds' },
      custom: { ...(lines ? LINE : {}), ...defaults.custom },
    },
    overrides,
  };
  const data = await transformed(panel.transformations ?? [], frames.map(toDataFrame));
  return applyFieldOverrides({
    data, fieldConfig, fieldConfigRegistry: registry(panel), theme, timeZone: 'utc', replaceVariables: (it) => it,
  });
}

function Plot({ panel, data, range, width, height }) {
  const timeRange = { from: dateTime(range[0]), to: dateTime(range[1]), raw: { from: 'now-1h', to: 'now' } };
  const shared = { width, height, timeRange, timeZone: 'utc', legend: panel.options.legend };
  if (panel.type === 'timeseries') return <TimeSeries frames={data} {...shared} />;
  if (data.length !== 1) throw Error(`a trend takes one table, not ${data.length}`);
  const x = data[0].fields.find((it) => getFieldDisplayName(it, data[0], data) === panel.options.xField);
  if (x === undefined) throw Error(`no field is called ${panel.options.xField}`);
  if (x.values.some((it, at) => at > 0 && !(it > x.values[at - 1]))) throw Error('the values of x do not ascend');
  const frame = { ...data[0], fields: [x, ...data[0].fields.filter((it) => it !== x)] };
  const fields = { x: (field) => field === x, y: fieldMatchers.get(FieldMatcherID.numeric).get({}) };
  return <TimeSeries frames={[frame]} {...shared} fields={fields} preparePlotFrame={preparePlotFrame} />;
}

function Stats({ panel, data, width, height }) {
  const values = getFieldDisplayValues({
    fieldConfig: panel.fieldConfig, reduceOptions: panel.options.reduceOptions, replaceVariables: (it) => it, theme, data,
    sparkline: panel.options.graphMode !== 'none', timeZone: 'utc',
  });
  return (
    <div style={{ display: 'flex' }}>
      {values.map((it, at) => (
        <BigValue
          key={at} value={it.display} width={width / values.length} height={height} theme={theme} count={values.length}
          colorMode={panel.options.colorMode} graphMode={panel.options.graphMode} textMode={panel.options.textMode}
          justifyMode={panel.options.justifyMode} sparkline={it.sparkline}
        />
      ))}
    </div>
  );
}

class Guarded extends React.Component {
  state = { error: null };
  static getDerivedStateFromError(error) { return { error }; }
  render() {
    const { error } = this.state;
    return error ? <div data-error={String(error)}>{String(error)}</div> : this.props.children;
  }
}

function Table({ data, width, height }) {
  cacheFieldDisplayNames(data);
  return <TableNG data={data[0]} width={width} height={height} />;
}

const KINDS = { timeseries: Plot, trend: Plot, stat: Stats, table: Table };

function Panel({ asked, data }) {
  const { panel, range } = asked, { x, y, w, h } = panel.gridPos, step = (WIDTH + GAP) / COLUMNS;
  const place = { position: 'absolute', left: x * step, top: y * ROW, width: w * step - GAP, height: h * ROW - GAP };
  if (panel.type === 'row') return <h5 style={place}>{panel.title}</h5>;
  const Kind = KINDS[panel.type], empty = !data.some((it) => it.length > 0);
  return (
    <div style={place} className="panel" data-title={panel.title} data-type={panel.type}>
      <PanelChrome title={panel.title} width={place.width} height={place.height}>
        {(width, height) => (
          <Guarded>
            {!Kind ? <p>{panel.type}: Grafana draws it with a plugin of its own</p>
              : empty ? <p data-empty="">No data</p>
              : <Kind panel={panel} data={data} range={range} width={width} height={height} />}
          </Guarded>
        )}
      </PanelChrome>
    </div>
  );
}

function ink(canvas) {
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let drawn = 0;
  for (let at = 3; at < pixels.length; at += 4) drawn += pixels[at] > 0;
  return drawn;
}

function state(panel) {
  const marked = (name) => panel.querySelector(`[data-${name}]`)?.dataset[name];
  const drawn = [...panel.querySelectorAll('canvas')].reduce((sum, it) => sum + ink(it), 0);
  const { title, type } = panel.dataset;
  return { title, type, text: panel.textContent, ink: drawn, error: marked('error'), empty: marked('empty') };
}

async function draw() {
  await Promise.all(['400', '500'].map((weight) => document.fonts.load(`${weight} 12px Inter`)));  // labels are measured
  const all = await Promise.all(window.panels.map(async (asked) => ({ asked, data: await prepared(asked) })));
  const bottom = Math.max(...window.panels.map(({ panel }) => panel.gridPos.y + panel.gridPos.h));
  const page = document.getElementById('page');
  Object.assign(page.style, { position: 'relative', width: `${WIDTH}px`, height: `${bottom * ROW}px` });
  createRoot(page).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      {all.map((it, at) => <Panel key={at} {...it} />)}
    </ThemeContext.Provider>);
  await new Promise((resolve) => setTimeout(resolve, 3000));  // plots are drawn some frames later
  const states = document.createElement('pre');
  Object.assign(states, { id: 'panels', hidden: true });
  states.textContent = JSON.stringify([...document.querySelectorAll('.panel')].map(state));
  document.body.append(states);
}

draw().catch((error) => console.error(error.stack));
