#!lua flags=allow-oom
-- Attach a connection to a consumer's group and give it the first part of what it has not seen.
-- Also at maxmemory: readers who come drain what is there.
-- KEYS 1 meta  2 journal  3 log
-- ARGV 1 consumer (the group)  2 connection (its one member)  3 offset, or -1 for where the consumer was
--      4 epoch of that offset  5 limit in bytes  6 retention_s  7 most groups on one response
--      8 bell (channel)  9 the field of the meta with what the consumer's client has said it has processed
-- Returns {'OK', offset, head, status, epoch, bytes, rewound (0 or 1)}, {'GONE'} or {'FULL'}.
-- Atomic, because between history and live nothing may be missed or seen twice.
--
-- The group's last delivered ID is made `offset-<largest>`: every entry that ends after the offset is
-- unread, under any epoch. Whoever was attached before loses its pending entries to this one, and
-- hears of it on the bell.
local meta = redis.call('HMGET', KEYS[1], 'status', 'starts', 'epoch', ARGV[9])
if not meta[1] then
  return {'GONE'}
end
local last = '-18446744073709551615'
local head = redis.call('STRLEN', KEYS[2])
local offset = tonumber(ARGV[3])
local known = false
local count = 0
if redis.call('EXISTS', KEYS[3]) == 1 then
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[3])) do
    count = count + 1
    if group[2] == ARGV[1] then
      known = group
    end
  end
end
if not known and count >= tonumber(ARGV[7]) then
  return {'FULL'}
end
-- What a later epoch overruled is lost. Of an epoch that is not known here even its start is: a failover
-- lost the claim itself, and only the beginning is certain.
local function valid(from, epoch)
  local at = from
  local is_known = from == 0
  for one, start in string.gmatch(meta[2], '(%d+):(%d+)') do
    one = tonumber(one)
    is_known = is_known or one == epoch
    if one > epoch then
      at = math.min(at, tonumber(start))
    end
  end
  return is_known and at or 0
end
local rewound = 0
if offset < 0 then
  offset = 0
  if known then
    -- What was read and not confirmed is read again: back to where the oldest pending entry starts. When
    -- that was trimmed its start is unknown, and its end less the largest entry would cut a record: 0. And
    -- when it is the first of the log, unread ones before it may have been trimmed: 0 again.
    offset = tonumber(string.match(known[8], '^%d+'))
    if known[6] > 0 then
      local oldest = redis.call('XPENDING', KEYS[3], ARGV[1])[2]
      local entry = redis.call('XRANGE', KEYS[3], oldest, oldest)[1]
      local first = redis.call('XRANGE', KEYS[3], '-', '+', 'COUNT', 1)[1]
      local known_start = entry and first[1] ~= oldest
      offset = math.min(offset, known_start and tonumber(string.match(oldest, '^%d+')) - #entry[2][2] or 0)
    end
  end
  -- An ack that nobody heard, for its reader or the node's connection to Redis had just gone.
  local acked, epoch = string.match(meta[4] or '', '^(%d+)-(%d+)$')
  if acked then
    offset = math.max(offset, math.min(head, valid(tonumber(acked), tonumber(epoch))))
  end
else
  local at = valid(offset, tonumber(ARGV[4]))
  if at < offset then
    offset = at
    rewound = 1
  end
  redis.call('HDEL', KEYS[1], ARGV[9])  -- it says itself where it is
end
local id = string.format('%.0f', offset) .. last
if known then
  for _, member in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[3], ARGV[1])) do
    redis.call('XGROUP', 'DELCONSUMER', KEYS[3], ARGV[1], member[2])
  end
  redis.call('XGROUP', 'SETID', KEYS[3], ARGV[1], id)
else
  redis.call('XGROUP', 'CREATE', KEYS[3], ARGV[1], id, 'MKSTREAM')
  redis.call('EXPIRE', KEYS[3], ARGV[6])
end
redis.call('XGROUP', 'CREATECONSUMER', KEYS[3], ARGV[1], ARGV[2])
redis.call('SPUBLISH', ARGV[8], 'attached ' .. ARGV[1] .. ' ' .. ARGV[2])
local bytes = redis.call('GETRANGE', KEYS[2], offset, offset + tonumber(ARGV[5]) - 1)
return {'OK', offset, head, meta[1], meta[3], bytes, rewound}
