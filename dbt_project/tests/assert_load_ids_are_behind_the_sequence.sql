-- After a restore or an insert by hand, a load_id beyond the sequence would hide later loads from the models.
select max(load_id) as newest
from {{ source('raw', 'sqs_messages') }}
having max(load_id) > (select last_value from raw.load_id_seq)
