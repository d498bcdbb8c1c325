// A table of a run (Parquet) -> its columns, read from the file piece by piece.
//
// Reads what this program writes and says by name what it does not read: flat columns, pages of the first version, plain values and
// dictionaries, packed by LZ4_RAW or not at all. The format: https://parquet.apache.org/docs/file-format/

const PARQUET_TYPES = ["BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"];
const NOTHING = 0xffffffff;

async function openTable(file) {
  const bytesOf = async (begin, end) => new Uint8Array(await file.slice(begin, end).arrayBuffer());
  const end = await bytesOf(Math.max(0, file.size - 8), file.size);
  if (end.length < 8 || ascii(end.subarray(4)) !== "PAR1") throw new Error("it is not a complete Parquet table");
  const length = new DataView(end.buffer).getUint32(0, true);
  if (length > file.size - 8) throw new Error("it is not a complete Parquet table");
  const about = makeThrift(await bytesOf(file.size - 8 - length, file.size - 8)).struct();
  const columns = new Map();
  for (const element of about[2].slice(1)) columns.set(ascii(element[4]), { type: element[1], isOptional: element[3] === 1 });
  const known = new Map((about[5] ?? []).map((pair) => [ascii(pair[1]), ascii(pair[2] ?? new Uint8Array())]));
  const groups = about[4].map((group) => new Map(group[1].map((chunk) => [chunk[3][3].map(ascii).join("."), chunk[3]])));

  return {
    rows: about[3],
    known,
    has: (name) => columns.has(name),
    // Numbers as an array; texts as { codes, texts }. What is missing is NaN, 0 in whole numbers, and the code NOTHING.
    async column(name) {
      const column = columns.get(name);
      if (!column) throw new Error(`it has no column ${name}`);
      const into = makeColumn(column.type, about[3], name);
      for (const group of groups) {
        const chunk = group.get(name);
        if (chunk[4] !== 0 && chunk[4] !== 7) throw new Error(`its column ${name} is compressed with codec ${chunk[4]}, and only LZ4_RAW is supported`);
        const begin = Math.min(chunk[11] ?? Infinity, chunk[9]);
        readChunk(await bytesOf(begin, begin + chunk[7]), chunk, column, into);
      }
      if (into.n !== about[3]) throw new Error(`its column ${name} has ${into.n} of ${about[3]} values`);
      return into.values();
    },
  };
}

function ascii(bytes) {
  return decoder.decode(bytes);
}

// Where the values of a column go, from one piece after the other.
function makeColumn(type, rows, name) {
  if (type === 6) {
    const [codes, texts, places] = [new Uint32Array(rows), [], new Map()];
    const codeOf = (text) => {
      if (!places.has(text)) places.set(text, texts.push(text) - 1);
      return places.get(text);
    };
    return { n: 0, nothing: NOTHING, take: codeOf, push(value) { codes[this.n++] = value; }, values: () => ({ codes, texts }) };
  }
  const kinds = { 0: Uint8Array, 1: Uint32Array, 2: Float64Array, 4: Float32Array, 5: Float64Array };
  if (!kinds[type]) throw new Error(`its column ${name} is of type ${PARQUET_TYPES[type] ?? type}, which is not supported`);
  const array = new kinds[type](rows);
  return { n: 0, nothing: NaN, take: (value) => value, push(value) { array[this.n++] = value; }, values: () => array };
}

// The pages of one column of one row group.
function readChunk(bytes, chunk, column, into) {
  let [at, read, dictionary] = [0, 0, null];
  while (read < chunk[5]) {
    const thrift = makeThrift(bytes.subarray(at));
    const header = thrift.struct();
    const begin = at + thrift.place();
    at = begin + header[3];
    const packed = bytes.subarray(begin, at);
    if (packed.length < header[3]) throw new Error("a page is incomplete");
    const page = chunk[4] === 7 ? unpackLz4(packed, header[2]) : packed;
    if (header[1] === 2) {
      dictionary = plainValues(page, 0, chunk[1], header[7][1]).map((value) => into.take(value));
      continue;
    }
    if (header[1] !== 0) throw new Error(`a page is of kind ${header[1]}, and only pages of version 1 are supported`);
    const { 1: n, 2: encoding } = header[5];
    if (!(n > 0)) throw new Error("a page is empty");
    read += n;
    readPage(page, n, encoding, chunk[1], column.isOptional, dictionary, into);
  }
}

function readPage(page, n, encoding, type, isOptional, dictionary, into) {
  const view = new DataView(page.buffer, page.byteOffset, page.byteLength);
  let at = 0;
  let present = null;
  if (isOptional) {
    const length = view.getUint32(0, true);
    present = runLengths(page.subarray(4, 4 + length), 1, n);
    at = 4 + length;
  }
  const count = present ? present.reduce((sum, is) => sum + is, 0) : n;
  let values;
  if (encoding === 0) {
    values = plainValues(page, at, type, count).map((value) => into.take(value));
  } else if (encoding === 8 || encoding === 2) {
    if (!dictionary) throw new Error("a page has no dictionary");
    values = runLengths(page.subarray(at + 1), page[at], count);
    for (let i = 0; i < count; i++) if (values[i] >= dictionary.length) throw new Error("an index is outside its dictionary");
  } else {
    throw new Error(`a page has encoding ${encoding}, and only plain values and dictionaries are supported`);
  }
  const isCoded = encoding !== 0;
  let next = 0;
  for (let i = 0; i < n; i++) {
    if (present && !present[i]) into.push(into.nothing);
    else into.push(isCoded ? dictionary[values[next++]] : values[next++]);
  }
}

function plainValues(page, at, type, count) {
  const view = new DataView(page.buffer, page.byteOffset, page.byteLength);
  const values = new Array(count);
  for (let i = 0; i < count; i++) {
    if (type === 0) values[i] = (page[at + (i >> 3)] >> (i & 7)) & 1;
    else if (type === 1) values[i] = view.getUint32(at + 4 * i, true);
    else if (type === 2) values[i] = Number(view.getBigInt64(at + 8 * i, true));
    else if (type === 4) values[i] = view.getFloat32(at + 4 * i, true);
    else if (type === 5) values[i] = view.getFloat64(at + 8 * i, true);
    else {
      const length = view.getUint32(at, true);
      if (at + 4 + length > page.length) throw new Error("a text is incomplete");
      values[i] = decode(page, at + 4, at + 4 + length);
      at += 4 + length;
    }
  }
  return values;
}

// Runs of one value, and groups of eight values of `width` bits each, in turn.
function runLengths(bytes, width, count) {
  const values = new Uint32Array(count);
  const byteWidth = (width + 7) >> 3;
  let [at, n] = [0, 0];
  while (n < count) {
    let [header, shift] = [0, 1];
    do {
      if (at >= bytes.length) throw new Error("a page is incomplete");
      header += (bytes[at] & 127) * shift;
      shift *= 128;
    } while (bytes[at++] & 128);
    const size = Math.floor(header / 2);
    if (header & 1) {
      // From the lowest bit on; five bytes hold any value, wherever it begins.
      for (let i = 0; i < size * 8 && n < count; i++) {
        const place = at + ((i * width) >> 3);
        let window = 0;
        for (let k = 4; k >= 0; k--) window = window * 256 + (bytes[place + k] ?? 0);
        values[n++] = Math.floor(window / 2 ** ((i * width) & 7)) % 2 ** width;
      }
      at += size * width;
    } else {
      let value = 0;
      for (let i = 0; i < byteWidth; i++) value += bytes[at + i] * 256 ** i;
      at += byteWidth;
      const last = Math.min(n + size, count);
      values.fill(value, n, last);
      if (last === n) throw new Error("a page is incomplete");
      n = last;
    }
  }
  return values;
}

// A block of LZ4 (https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md).
function unpackLz4(packed, length) {
  const out = new Uint8Array(length);
  let [at, to] = [0, 0];
  const more = (size) => {
    let byte = 255;
    while (size >= 15 && byte === 255) {
      if (at >= packed.length) throw new Error("a page is incomplete");
      byte = packed[at++];
      size += byte;
    }
    return size;
  };
  while (at < packed.length) {
    const token = packed[at++];
    const literals = more(token >> 4);
    if (at + literals > packed.length || to + literals > length) throw new Error("a page is incomplete");
    out.set(packed.subarray(at, at + literals), to);
    [at, to] = [at + literals, to + literals];
    if (at >= packed.length) break;
    const distance = packed[at] + 256 * packed[at + 1];
    at += 2;
    const match = more(token & 15) + 4;
    if (distance === 0 || distance > to || to + match > length) throw new Error("a page is incomplete");
    for (let i = 0; i < match; i++, to++) out[to] = out[to - distance];
  }
  if (to !== length) throw new Error("a page is incomplete");
  return out;
}

// Thrift's compact protocol (https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md): structs as objects whose
// keys are the numbers of their fields.
function makeThrift(bytes) {
  let at = 0;
  const byte = () => {
    if (at >= bytes.length) throw new Error("its metadata is incomplete");
    return bytes[at++];
  };
  const varint = () => {
    let [value, scale, last] = [0, 1, 0];
    do {
      last = byte();
      value += (last & 127) * scale;
      scale *= 128;
    } while (last & 128);
    return value;
  };
  const zigzag = () => {
    const value = varint();
    return value % 2 ? -(value + 1) / 2 : value / 2;
  };
  const binary = () => {
    const length = varint();
    if (at + length > bytes.length) throw new Error("its metadata is incomplete");
    at += length;
    return bytes.subarray(at - length, at);
  };
  const list = () => {
    const head = byte();
    const size = head >> 4 === 15 ? varint() : head >> 4;
    const type = head & 15;
    // In lists a truth is a byte.
    return Array.from({ length: Math.min(size, bytes.length) }, () => (type <= 2 ? byte() === 1 : value(type)));
  };
  const value = (type) => {
    switch (type) {
      case 1: return true;
      case 2: return false;
      case 3: return byte();
      case 4: case 5: case 6: return zigzag();
      case 7: at += 8; return NaN;
      case 8: return binary();
      case 9: case 10: return list();
      case 12: return struct();
      default: throw new Error(`its metadata has a value of kind ${type}`);
    }
  };
  function struct() {
    const fields = {};
    for (let last = 0, head = byte(); head !== 0; head = byte()) {
      last = head >> 4 ? last + (head >> 4) : zigzag();
      fields[last] = value(head & 15);
    }
    return fields;
  }
  return { struct, place: () => at };
}
