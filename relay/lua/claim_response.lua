-- Take the lease of a response and begin a new epoch: from here on older writers are fenced.
-- KEYS 1 meta  2 journal  3 lease  4 log
-- ARGV 1 worker  2 lease_ms  3 retention_s  4 nonce (0 to 999999, at random)
-- Returns {'OK', epoch, head, request, created_at, cancel ('' or '1'), notices}, or {'GONE'}, {'DONE'} (it has
-- ended), {'HELD'} (another owner's lease is alive).
-- Atomic, because the lease, the epoch and the offset where the epoch starts must be one fact.
-- The epoch is the number of the claim times a million, plus the nonce: a failover may lose a claim, and the
-- next one, which has its number again, must fence its writer, and be told from it in a reader's position.
-- meta.starts is EPOCH:OFFSET,EPOCH:OFFSET,...
local meta = redis.call('HMGET', KEYS[1], 'status', 'request', 'created_at', 'cancel', 'starts', 'notices', 'epoch')
local status = meta[1]
if not status then
  return {'GONE'}
end
if status == 'completed' or status == 'failed' or status == 'cancelled' then
  return {'DONE'}
end
if redis.call('EXISTS', KEYS[3]) == 1 then
  return {'HELD'}
end
local number = math.floor(tonumber(meta[7]) / 1000000) + 1
local epoch = string.format('%.0f', number * 1000000 + tonumber(ARGV[4]))
local head = redis.call('STRLEN', KEYS[2])
local starts = (meta[5] == '' and '' or meta[5] .. ',') .. epoch .. ':' .. head
redis.call('HSET', KEYS[1], 'epoch', epoch, 'starts', starts, 'worker', ARGV[1], 'status', 'running', 'level', '0')
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('EXPIRE', KEYS[4], ARGV[3])
return {'OK', tonumber(epoch), head, meta[2] or '', meta[3], meta[4] or '', meta[6] or '[]'}
