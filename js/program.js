// SPDX-License-Identifier: MIT
//
// What the programs of this folder have in common: getting koffi, arguments, errors in one line.
'use strict';

const { spawnSync } = require('node:child_process');
const net = require('node:net');
const util = require('node:util');

const PORT = 31580;

class UsageError extends Error {}

// `node hello_world.js` is to work in a fresh checkout, where the only dependency is not there yet.
function loadMachnet() {
  try {
    return require('./machnet');
  } catch (error) {
    if (error.code !== 'MODULE_NOT_FOUND' || !/'koffi'/.test(error.message)) {
      throw error;
    }
  }
  console.error('koffi is not installed yet: npm ci --omit=dev');
  const command = ['ci', '--omit=dev', '--ignore-scripts', '--no-audit', '--no-fund'];
  const npm = spawnSync('npm', command, { cwd: __dirname, stdio: ['ignore', 2, 2] });
  if (npm.status !== 0) {
    const why = npm.error ? `: ${npm.error.message}` : '';
    throw new Error(`npm could not install koffi${why}; run "npm ci --omit=dev" in ${__dirname}`);
  }
  return require('./machnet');
}

function integer(name, text, low, high) {
  const value = Number(text);
  if (!/^[0-9]+$/.test(text) || value < low || value > high) {
    throw new UsageError(`--${name} must be a number from ${low} to ${high}, not '${text}'`);
  }
  return value;
}

function address(name, text) {
  if (!net.isIPv4(text)) {
    throw new UsageError(`--${name} must be an IPv4 address such as 10.0.0.2, not '${text}'`);
  }
  return text;
}

const COMMON = {
  local: { type: 'string' },
  remote: { type: 'string' },
  port: { type: 'string', default: String(PORT) },
  protocol: { type: 'string' },
  help: { type: 'boolean', short: 'h' },
};

function parse(more) {
  let values;
  try {
    ({ values } = util.parseArgs({ options: { ...COMMON, ...more }, strict: true }));
  } catch (error) {
    throw new UsageError(error.message.split('. ')[0]);
  }
  if (values.help) {
    return values;
  }
  if (values.local === undefined) {
    throw new UsageError('--local is missing: the IP address of the sidecar here');
  }
  address('local', values.local);
  if (values.remote !== undefined) {
    address('remote', values.remote);
  }
  values.port = integer('port', values.port, 1, 65535);
  if (values.protocol !== undefined && !['udp', 'tcp'].includes(values.protocol)) {
    throw new UsageError(`--protocol must be udp or tcp, not '${values.protocol}'`);
  }
  return values;
}

// Runs main(machnet, options): exit status 0, 1 when it failed, 2 when the arguments are wrong.
async function run(usage, more, main) {
  try {
    const options = parse(more);
    if (options.help) {
      console.log(usage);
      return;
    }
    await main(loadMachnet, options);
  } catch (error) {
    const isUsage = error instanceof UsageError;
    console.error(isUsage ? `${usage}\n${error.message}` : error.message);
    process.exitCode = isUsage ? 2 : 1;
  }
}

module.exports = { run, integer, PORT, UsageError };
