"""Every change to a shard that touches more than one key: Lua, one atomic step each, Redis 6.2 and later.

Fields of a shard's totals:
    clock                                     microseconds, time of the last commit or removal, always rising
    floor                                     removals up to this time are no longer listed
    bytes                                     what is stored now, of all sources
    live:<source>:{episodes,steps,bytes}      what is stored now
    ever:<source>:<outcome>:{episodes,...}    what was ever committed
"""

from typing import Final

WRITE: Final = """
-- Store one chunk of an episode that is not committed yet.
-- KEYS 1 episodes  2 chunks of this writer
-- ARGV 1 id  2 number of the chunk  3 its bytes  4 life time of an uncommitted episode, milliseconds
-- A write that was delayed until after the commit must not make committed chunks expire.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 0 end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
"""

COMMIT: Final = """
-- Make an episode visible, once, and make room for it.
-- KEYS 1 episodes  2 totals  3 removed  4 chunks of this writer  5 index of the episode's source
--      6... indices that may be evicted from
-- ARGV 1 id  2 token  3 record  4 source  5 outcome  6 length  7 bytes  8 number of chunks
--      9 the last chunk  10 byte budget  11 prefix of chunk keys  12 how many removals stay listed
--      13... sources of KEYS 6...
-- Returns {'committed'} | {'duplicate'} | {'incomplete', earlier chunks found} | {'full', bytes that stay}
local episodes, totals, removed = KEYS[1], KEYS[2], KEYS[3]
local length, size = tonumber(ARGV[6]), tonumber(ARGV[7])
local chunks, budget = tonumber(ARGV[8]), tonumber(ARGV[10])

local function number(field) return tonumber(redis.call('HGET', totals, field) or '0') end

local function tick()
  local now = redis.call('TIME')
  local clock = string.format('%.0f', math.max(now[1] * 1000000 + now[2], number('clock') + 1))
  redis.call('HSET', totals, 'clock', clock)
  return clock
end

local function count(label, sign, steps, bytes)
  redis.call('HINCRBY', totals, label .. ':episodes', sign)
  redis.call('HINCRBY', totals, label .. ':steps', sign * steps)
  redis.call('HINCRBY', totals, label .. ':bytes', sign * bytes)
end

local function oldest()
  local index, entry, time
  for i = 6, #KEYS do
    local first = redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
    if first[1] and (not time or tonumber(first[2]) < time) then
      index, entry, time = KEYS[i], first[1], tonumber(first[2])
    end
  end
  return index, entry
end

local function evict(index, entry)
  local id = string.match(entry, '^[^:]+')
  local record = cmsgpack.unpack(redis.call('HGET', episodes, id))
  redis.call('ZREM', index, entry)
  redis.call('HDEL', episodes, id)
  redis.call('UNLINK', ARGV[11] .. id .. ':' .. record.token)
  count('live:' .. record.meta.source, -1, record.length, record.bytes)
  redis.call('HINCRBY', totals, 'bytes', -record.bytes)
  redis.call('ZADD', removed, tick(), id)
  if redis.call('ZCARD', removed) > tonumber(ARGV[12]) then
    redis.call('HSET', totals, 'floor', redis.call('ZPOPMIN', removed)[2])
  end
  return record.bytes
end

local present = redis.call('HGET', episodes, ARGV[1])
if present and cmsgpack.unpack(present).token == ARGV[2] then return {'committed'} end
if present or redis.call('ZSCORE', removed, ARGV[1]) then
  redis.call('UNLINK', KEYS[4])
  return {'duplicate'}
end

local found = redis.call('HLEN', KEYS[4]) - redis.call('HEXISTS', KEYS[4], chunks - 1)
if found ~= chunks - 1 then return {'incomplete', found} end

local stored = number('bytes')
local fixed = stored
for i = 13, #ARGV do fixed = fixed - number('live:' .. ARGV[i] .. ':bytes') end
if fixed + size > budget then return {'full', fixed} end
while stored + size > budget do stored = stored - evict(oldest()) end

redis.call('HSET', KEYS[4], chunks - 1, ARGV[9])
redis.call('PERSIST', KEYS[4])
redis.call('HSET', episodes, ARGV[1], ARGV[3])
-- An invalid episode is listed, with no step that may be drawn.
local drawable = ARGV[5] == 'invalid' and 0 or length
redis.call('ZADD', KEYS[5], tick(), ARGV[1] .. ':' .. drawable)
count('live:' .. ARGV[4], 1, length, size)
redis.call('HINCRBY', totals, 'bytes', size)
count('ever:' .. ARGV[4] .. ':' .. ARGV[5], 1, length, size)
return {'committed'}
"""

CHANGES: Final = """
-- What was committed to and removed from a shard since its clock showed a time.
-- KEYS 1 totals  2 removed  3... indices
-- ARGV 1 that time; 0 for everything
-- Returns {clock, 1 if this is everything (else 0), removed ids, entries of KEYS 3, entries of KEYS 4, ...}
local clock = tonumber(redis.call('HGET', KEYS[1], 'clock') or '0')
local floor = tonumber(redis.call('HGET', KEYS[1], 'floor') or '0')
local since = tonumber(ARGV[1])
local restart = since == 0 or since < floor or since > clock
if restart then since = 0 end
local found = {string.format('%.0f', clock), restart and 1 or 0}
for i = 2, #KEYS do
  local entries = {}
  if since < clock and not (restart and i == 2) then
    entries = redis.call('ZRANGEBYSCORE', KEYS[i], string.format('(%.0f', since), '+inf')
  end
  found[#found + 1] = entries
end
return found
"""
