"""Lua scripts for all changes to a shard that touch more than one key. Each is atomic; Redis 6.2 or later.

A script computes the keys of the chunks of episodes that it evicts. They carry the hash tag of its KEYS and
so lie in the same slot, as a Redis Cluster requires.

Fields of a shard's totals, with the units episodes, steps, learnable (steps) and bytes:
    clock                             time of the last change in microseconds, strictly increasing
    floor                             time up to which removals are no longer listed
    bytes                             stored bytes of all sources
    live:<source>:<unit>              episodes that are stored now
    ever:<source>:<outcome>:<unit>    episodes that were ever committed
    evicted:<source>:<unit>           episodes that were ever evicted to make room
    quarantined                       number of damaged episodes in the quarantine
"""

from typing import Final

_RECORD: Final = """
-- Decode a record; return an empty table if it is missing or damaged, so that the script can go on.
local function record_of(packed)
  local readable, record = pcall(cmsgpack.unpack, packed or '')
  return readable and type(record) == 'table' and record or {}
end
"""

_UNLINK: Final = """
-- Remove the chunks 0 to chunks - 1 whose keys begin with a prefix.
local function unlink(prefix, chunks)
  for i = 0, chunks - 1 do redis.call('UNLINK', prefix .. i) end
end
"""

RENEW: Final = """
-- Extend the life of the chunks of an uncommitted episode. Chunks of a committed episode never expire.
-- KEYS 1 prefix of this writer's chunks
-- ARGV 1 number of chunks  2 life time in milliseconds
for i = 0, ARGV[1] - 1 do
  if redis.call('PTTL', KEYS[1] .. i) > 0 then redis.call('PEXPIRE', KEYS[1] .. i, ARGV[2]) end
end
return 1
"""

DISCARD: Final = (
    _RECORD
    + _UNLINK
    + """
-- Remove the chunks of an episode, unless it is committed.
-- KEYS 1 episodes  2 prefix of this writer's chunks
-- ARGV 1 id  2 token  3 number of chunks
if record_of(redis.call('HGET', KEYS[1], ARGV[1])).token == ARGV[2] then return 0 end
unlink(KEYS[2], ARGV[3])
return 1
"""
)

_CLOCK: Final = """
-- Return a field of the totals as a number.
local function number(field) return tonumber(redis.call('HGET', totals, field) or '0') end

-- Advance the shard's clock and return it.
local function tick()
  local now = redis.call('TIME')
  local clock = string.format('%.0f', math.max(now[1] * 1000000 + now[2], number('clock') + 1))
  redis.call('HSET', totals, 'clock', clock)
  return clock
end
"""

_COUNT: Final = """
-- Add an episode to the counters of a label (sign 1), or subtract it (sign -1).
local function count(label, sign, steps, learnable, bytes)
  redis.call('HINCRBY', totals, label .. ':episodes', sign)
  redis.call('HINCRBY', totals, label .. ':steps', sign * steps)
  redis.call('HINCRBY', totals, label .. ':learnable', sign * learnable + 0) -- -0 is no integer to Redis
  redis.call('HINCRBY', totals, label .. ':bytes', sign * bytes)
end
"""

_REMOVE: Final = (
    _COUNT
    + """
-- Remove an episode, and list the removal for readers; at most `listed` removals stay listed.
local function remove(id, listed)
  redis.call('HDEL', episodes, id)
  redis.call('HDEL', priorities, id)
  redis.call('ZREM', prioritized, id)
  redis.call('ZADD', removed, tick(), id)
  if redis.call('ZCARD', removed) > tonumber(listed) then
    local floor = math.max(number('floor'), redis.call('ZPOPMIN', removed)[2])
    redis.call('HSET', totals, 'floor', string.format('%.0f', floor))
  end
end
"""
)

COMMIT: Final = (
    """
-- Make an episode visible, exactly once, and evict others to make room for it.
-- KEYS 1 episodes  2 totals  3 removed  4 prefix of this writer's chunks  5 priorities  6 prioritized
--      7 quarantine  8 index of the episode's source  9... indices that may be evicted from
-- ARGV 1 id  2 token  3 record  4 source  5 outcome  6 length  7 number of learnable steps  8 bytes
--      9 number of chunks  10 byte budget  11 prefix of chunk keys  12 number of removals that stay listed
--      13 entry of the index  14... sources of KEYS 9...
-- Returns {'committed'} | {'duplicate'} | {'incomplete', chunks found} | {'full', bytes never evicted}
local episodes, totals, removed, priorities, prioritized = KEYS[1], KEYS[2], KEYS[3], KEYS[5], KEYS[6]
local length, learnable, size = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local chunks, budget = tonumber(ARGV[9]), tonumber(ARGV[10])
"""
    + _CLOCK
    + _RECORD
    + _REMOVE
    + _UNLINK
    + """
-- Return the index and the entry of the oldest episode that may be evicted.
local function oldest()
  local index, entry, time
  for i = 9, #KEYS do
    local first = redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
    if first[1] and (not time or tonumber(first[2]) < time) then
      index, entry, time = KEYS[i], first[1], tonumber(first[2])
    end
  end
  return index, entry
end

-- Evict an episode, and return its bytes.
local function evict(index, entry)
  local id = string.match(entry, '^[^:]+')
  local record = record_of(redis.call('HGET', episodes, id))
  redis.call('ZREM', index, entry)
  if not record.token then return 0 end -- the entry belongs to no readable episode
  unlink(ARGV[11] .. id .. ':' .. record.token .. ':', record.chunks)
  count('live:' .. record.meta.source, -1, record.length, record.learnable, record.bytes)
  count('evicted:' .. record.meta.source, 1, record.length, record.learnable, record.bytes)
  redis.call('HINCRBY', totals, 'bytes', -record.bytes)
  remove(id, ARGV[12])
  return record.bytes
end

local present = redis.call('HGET', episodes, ARGV[1])
if record_of(present).token == ARGV[2] then
  -- This writer's episode is committed. It is written again, so that a WAIT on this connection covers it.
  redis.call('HSET', episodes, ARGV[1], present)
  return {'committed'}
end
-- An evicted id must not be committed again; an id in the quarantine may.
local gone = redis.call('ZSCORE', removed, ARGV[1]) and redis.call('HEXISTS', KEYS[7], ARGV[1]) == 0
if present or gone then
  unlink(KEYS[4], chunks)
  return {'duplicate'}
end

local found = 0
for i = 0, chunks - 1 do found = found + redis.call('EXISTS', KEYS[4] .. i) end
if found ~= chunks then return {'incomplete', found} end

local stored = number('bytes')
local fixed = stored
for i = 14, #ARGV do fixed = fixed - number('live:' .. ARGV[i] .. ':bytes') end
if fixed + size > budget then return {'full', fixed} end
while stored + size > budget do
  local index, entry = oldest()
  if not index then return {'full', stored} end -- only if the totals are wrong
  stored = stored - evict(index, entry)
end

for i = 0, chunks - 1 do redis.call('PERSIST', KEYS[4] .. i) end
redis.call('HSET', episodes, ARGV[1], ARGV[3])
redis.call('ZADD', KEYS[8], tick(), ARGV[13])
count('live:' .. ARGV[4], 1, length, learnable, size)
redis.call('HINCRBY', totals, 'bytes', size)
count('ever:' .. ARGV[4] .. ':' .. ARGV[5], 1, length, learnable, size)
return {'committed'}
"""
)

PRIORITIZE: Final = (
    """
-- Set the priorities of episodes; ids of episodes that are not committed are ignored.
-- KEYS 1 episodes  2 totals  3 priorities  4 prioritized
-- ARGV id 1  its priority  id 2  its priority ...
local totals = KEYS[2]
"""
    + _CLOCK
    + """
for i = 1, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then
    redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
    redis.call('ZADD', KEYS[4], tick(), ARGV[i])
  end
end
"""
)

CHANGES: Final = """
-- Return the changes of a shard since a reader's last call, the oldest ones of each list first.
-- KEYS 1 totals  2 priorities  3 removed  4 prioritized  5... indices
-- ARGV 1 largest number of changes per list  2... time up to which the reader knows KEYS 3...; 0 for nothing
-- Returns {1 if the reader must start afresh, else 0; totals; for each of KEYS 3...: {entry, time, ...}}
-- An entry of prioritized is `<id>:<priority>`. Priorities are returned only after all episodes.
local clock = tonumber(redis.call('HGET', KEYS[1], 'clock') or '0')
local floor = tonumber(redis.call('HGET', KEYS[1], 'floor') or '0')
local since = tonumber(ARGV[2])
local restart = since == 0 or since < floor or since > clock

local function changes(i)
  if restart and i == 3 then return {} end
  local from = restart and '0' or ARGV[i - 1]
  if tonumber(from) >= clock then return {} end
  return redis.call('ZRANGEBYSCORE', KEYS[i], '(' .. from, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[1])
end

local found = {restart and 1 or 0, redis.call('HGETALL', KEYS[1]), changes(3), {}}
local behind = false
for i = 5, #KEYS do
  found[i] = changes(i)
  behind = behind or #found[i] >= 2 * ARGV[1]
end
if not behind then
  found[4] = changes(4)
  for i = 1, #found[4], 2 do
    found[4][i] = found[4][i] .. ':' .. (redis.call('HGET', KEYS[2], found[4][i]) or '1')
  end
end
return found
"""

FORGET: Final = (
    """
-- Delete an episode for good, unless its record has changed. All readers start afresh. Unlike the id of an
-- evicted episode, its id may be used again.
-- KEYS 1 episodes  2 totals  3 priorities  4 prioritized  5 index of its source  6 prefix of its chunks
-- ARGV 1 id  2 its record  3 its entry of the index  4 its source  5 length  6 number of learnable steps
--      7 bytes  8 number of chunks
-- Returns 0 if this record is not stored under the id (any more), else 1.
local totals = KEYS[2]
"""
    + _CLOCK
    + _COUNT
    + _UNLINK
    + """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('ZREM', KEYS[5], ARGV[3])
unlink(KEYS[6], ARGV[8])
count('live:' .. ARGV[4], -1, ARGV[5], ARGV[6], ARGV[7])
redis.call('HINCRBY', totals, 'bytes', -ARGV[7])
redis.call('HSET', totals, 'floor', tick())
return 1
"""
)

QUARANTINE: Final = (
    """
-- Move a damaged episode to the quarantine: it is no longer listed or drawn. Its chunks stay.
-- KEYS 1 episodes  2 totals  3 removed  4 quarantine  5 priorities  6 prioritized  7... all indices
-- ARGV 1 id  2 its record  3 entry of the quarantine  4 number of removals that stay listed
--      and if the record can be read  5 entry of the index  6 source  7 length  8 number of learnable steps
--      9 bytes
-- Returns 0 if this record is not stored under the id (any more), else 1.
local episodes, totals, removed, priorities, prioritized = KEYS[1], KEYS[2], KEYS[3], KEYS[5], KEYS[6]
"""
    + _CLOCK
    + _REMOVE
    + """
if redis.call('HGET', episodes, ARGV[1]) ~= ARGV[2] then return 0 end
if ARGV[5] then
  for i = 7, #KEYS do redis.call('ZREM', KEYS[i], ARGV[5]) end
  count('live:' .. ARGV[6], -1, ARGV[7], ARGV[8], ARGV[9])
  redis.call('HINCRBY', totals, 'bytes', -ARGV[9])
end
redis.call('HSET', KEYS[4], ARGV[1], ARGV[3])
redis.call('HSET', totals, 'quarantined', redis.call('HLEN', KEYS[4]))
remove(ARGV[1], ARGV[4])
return 1
"""
)

DROP: Final = (
    _UNLINK
    + """
-- Delete an episode in the quarantine.
-- KEYS 1 quarantine  2 totals  3 prefix of its chunks, if they are known
-- ARGV 1 id  2 its entry of the quarantine  3 number of its chunks, if they are known
-- Returns 0 if this entry is not in the quarantine (any more), else 1.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[2], 'quarantined', redis.call('HLEN', KEYS[1]))
if KEYS[3] then unlink(KEYS[3], ARGV[3]) end
return 1
"""
)

MIGRATE: Final = (
    _UNLINK
    + """
-- Put an episode that was written again in the place of the old one; its time in the index stays.
-- KEYS 1 episodes  2 index that lists it so far  3 index that lists it from now on
--      4 prefix of its old chunks  5 prefix of its new chunks
-- ARGV 1 id  2 its old record  3 its new record  4 number of chunks  5 its old entry  6 its new entry
-- Returns the number of new chunks that are missing; then nothing has changed. Nothing changes either if the
-- old record is not stored (any more).
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
local missing = tonumber(ARGV[4])
for i = 0, ARGV[4] - 1 do missing = missing - redis.call('EXISTS', KEYS[5] .. i) end
if missing > 0 then return missing end
for i = 0, ARGV[4] - 1 do redis.call('PERSIST', KEYS[5] .. i) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
local time = redis.call('ZSCORE', KEYS[2], ARGV[5])
redis.call('ZREM', KEYS[2], ARGV[5])
if time then redis.call('ZADD', KEYS[3], time, ARGV[6]) end
unlink(KEYS[4], ARGV[4])
return 0
"""
)

RELIST: Final = (
    """
-- Correct the entries of one episode in the indices, unless its record has changed.
-- KEYS 1 episodes  2 totals  3... all indices
-- ARGV 1 id  2 its record, '' if it has none  3 number of the index that should list it, from 1; 0 for none
--      4 the right entry  5... number of the index and entry, for each wrong entry
-- Returns 0 if the record has changed, else 1.
local totals = KEYS[2]
"""
    + _CLOCK
    + """
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
for i = 5, #ARGV, 2 do redis.call('ZREM', KEYS[2 + ARGV[i]], ARGV[i + 1]) end
local index = KEYS[2 + ARGV[3]]
if ARGV[3] ~= '0' and not redis.call('ZSCORE', index, ARGV[4]) then
  redis.call('ZADD', index, tick(), ARGV[4])
end
return 1
"""
)

RECOUNT: Final = (
    _RECORD
    + """
-- Compare a shard's totals with its episodes. Redis serves no other client meanwhile.
-- KEYS 1 episodes  2 totals  3 quarantine
-- ARGV 1 1 to correct the totals, else 0  2... all sources
-- Returns {field, its value, its right value, ...} for each wrong field.
local right = {bytes = 0, quarantined = redis.call('HLEN', KEYS[3])}
for i = 2, #ARGV do
  for _, unit in ipairs({'episodes', 'steps', 'learnable', 'bytes'}) do
    right['live:' .. ARGV[i] .. ':' .. unit] = 0
  end
end
local cursor = '0'
repeat
  local page = redis.call('HSCAN', KEYS[1], cursor, 'COUNT', 1000)
  cursor = page[1]
  for i = 2, #page[2], 2 do
    local record = record_of(page[2][i])
    local live = 'live:' .. ((record.meta or {}).source or '')
    if right[live .. ':bytes'] then
      right[live .. ':episodes'] = right[live .. ':episodes'] + 1
      right[live .. ':steps'] = right[live .. ':steps'] + record.length
      right[live .. ':learnable'] = right[live .. ':learnable'] + record.learnable
      right[live .. ':bytes'] = right[live .. ':bytes'] + record.bytes
      right.bytes = right.bytes + record.bytes
    end
  end
until cursor == '0'
local wrong = {}
for field, value in pairs(right) do
  local said = tonumber(redis.call('HGET', KEYS[2], field) or '0')
  if said ~= value then
    wrong[#wrong + 1] = field
    wrong[#wrong + 1] = said
    wrong[#wrong + 1] = value
    if ARGV[1] == '1' then redis.call('HSET', KEYS[2], field, value) end
  end
end
return wrong
"""
)
